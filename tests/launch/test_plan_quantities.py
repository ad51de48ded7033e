"""Numbers as people write them, and the batch that scaling laws advise."""

import pytest

from launch.plan.batch import advised_rate, advised_sequences, advised_tokens
from launch.plan.quantities import count_text, duration, gigabytes, parse_count
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("300B", 300_000_000_000),
        ("1.5T", 1_500_000_000_000),
        ("10M", 10_000_000),
        ("2k", 2_000),
        ("4096", 4096),
        ("4_096", 4096),
        ("1,024", 1024),
        ("15.6T", 15_600_000_000_000),
        ("0.3B", 300_000_000),
        ("3e11", 300_000_000_000),
        (" 7B ", 7_000_000_000),
        ("9007199254740993", 9007199254740993),  # beyond what a float holds
    ],
)
def test_counts_are_exact(text: str, number: int) -> None:
    assert parse_count(text, "--tokens") == number


@pytest.mark.parametrize(
    "text",
    ["300X", "", "B", "-3B", "1.5.2T", "1e400", "nan", "0", "1.5", "0.5K1", "３00B", "1" * 99],
)
def test_what_is_no_count_is_told(text: str) -> None:
    with pytest.raises(UserError, match="--tokens: got") as caught:
        parse_count(text, "--tokens")
    assert caught.value.status == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (7.842, "7.84 s"),
        (599, "599 s"),
        (1200, "20 min"),
        (7200, "2.0 hours"),
        (47.5 * 3600, "47.5 hours"),
        (6.25 * 86400, "6.2 days"),
        (3000 * 86400, "8.2 years"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_and_bytes_for_people() -> None:
    assert [count_text(n) for n in (512, 4_194_304, 8.03e9, 3e11, 1.5e12, 999_999_999)] == [
        "512",
        "4.19M",
        "8.03B",
        "300B",
        "1.5T",
        "1B",
    ]
    assert gigabytes(84.93e9) == "84.9 GB"
    assert gigabytes(1e12) == "1,000 GB"


def test_advised_batch_and_rate_by_hand() -> None:
    """Bi et al. 2024, equation 1: 1e20^0.3271 = e^15.0635, 1e20^-0.125 = e^-5.7565."""
    assert advised_tokens(1e20) == pytest.approx(0.2920 * 3_483_900, rel=1e-3)
    assert advised_rate(1e20) == 9.9e-4  # 0.3118 · 0.0031623 = 0.000986


def test_advised_batches_are_shared_out_evenly() -> None:
    for gpus in (1, 3, 8, 24, 96, 1024, 5000):
        batch = advised_sequences(1e22, 4096, gpus)
        per_rank = batch // gpus
        assert batch % gpus == 0
        assert per_rank & (per_rank - 1) == 0
        target = advised_tokens(1e22) / 4096
        assert batch <= max(gpus, target * 2**0.5)
        assert batch >= target / 2**0.5
