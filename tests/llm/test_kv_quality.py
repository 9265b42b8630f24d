"""What int8 keys and values cost the embedded model: measured, printed, and bounded."""

from tools.kv_quality import TEXT, measure, table


def test_lossy_keys_and_values_hardly_change_what_the_model_says(capsys):
    exact, int8 = measure("penstock-tiny", TEXT.read_text("utf-8"), max_tokens=700)
    with capsys.disabled():
        print("\n" + table([exact, int8]))

    assert (exact.kl, exact.top1) == (0.0, 1.0)
    assert int8.codec == "int8"
    assert int8.bytes_per_token <= 0.57 * exact.bytes_per_token
    assert 0 < int8.kl < 2e-3  # below what bf16 itself costs a float32 checkpoint of this size
    assert int8.top1 > 0.97
