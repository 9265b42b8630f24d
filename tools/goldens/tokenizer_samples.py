"""Our own text: what the small tokenizers of make_tokenizers.py are made from, and what they are tried on."""

TEXT = """\
A penstock is the gated pipe that feeds a turbine. The gate sets the flow; the pipe loses nothing on the way.
Water enters at the top, falls, and turns the wheel at the bottom. The wheel turns the shaft.
One row never sees its neighbours, so the same request gives the same answer in any company.
The scheduler counts tokens, the pool counts blocks, and the loop fits on one screen.
When the memory is full, the newest request waits; when there is room again, it begins where it stopped.
def scale(row, weight, eps=1e-05):
    mean = sum(x * x for x in row) / len(row)
    return [x / (mean + eps) ** 0.5 * w for x, w in zip(row, weight)]
for number in range(10, 200, 5):
    print(f"{number:>4} {number ** 2}")
class Block:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.count = 0
She said that she'd read it, and they've agreed that it isn't hard; we'll see what they're saying.
2024 was followed by 2025 and 2026; 3.14159 is near 22/7, and 1,000,000 is 10 to the 6th power.
Größe und Fluß: über alle Maße schön. L'été dernier, à la plage, nous étions déjà là. El niño comió piña.
Вода падает вниз и вращает колесо. 水从高处落下，推动轮子。 水が落ちて、車輪を回す。
"""
LINES = tuple(TEXT.splitlines())
SAMPLES = (
    *("", " ", "   ", "a", "The gate", " the gate", "  two  spaces ", "line\n\nline\r\n\ttab", "x" * 40),
    *("she'd WE'LL They're", "12345 3.14 1,000", "def scale(row):\n    return row", "don't stop-now!?"),
    *(
        "Größe à la piña",
        "Gro\u0308ße",
        "Вода",
        "水从高处",
        "車輪",
        "\ufb01ne \u00bd \uff21",
        "🙂👍🏽 🏳️\u200d🌈",
        "\x00\x07",
    ),
    *(
        "▁under",
        "</s>",
        "<unk> x",
        "hello <|eot_id|><|im_end|> there",
        "[MASK] it </s>done",
        "a<think>b</think> c",
    ),
    *(LINES[0], LINES[-1], "ends with space "),
)
