import numpy as np

from penstock.sampling.elementary import exp, log, log_reduced


def test_exp_is_right_to_six_in_ten_million():
    x = np.linspace(-29, 0, 100_001, dtype=np.float32)

    np.testing.assert_allclose(exp(x), np.exp(x.astype(np.float64)), rtol=6e-7)


def test_exp_is_one_at_zero_and_ends_at_its_lower_bound():
    x = np.array([0, -29, -30, -np.inf, np.nan], np.float32)
    y = exp(x)

    assert y[0] == 1
    assert (y[1:] == y[1]).all()


def test_log_is_right_to_two_in_ten_million():
    x = np.exp(np.linspace(-80, 80, 100_001)).astype(np.float32)

    np.testing.assert_allclose(log(x), np.log(x.astype(np.float64)), rtol=2e-7, atol=1e-9)


def test_log_reduced_keeps_the_smallest_arguments():
    m = -np.exp(np.linspace(-30, np.log(0.29), 1001)).astype(np.float32)

    np.testing.assert_allclose(log_reduced(m, np.zeros_like(m)), np.log1p(m.astype(np.float64)), rtol=2e-7)
