"""Personal data: what is masked, what only looks like it, and that masks stay."""

import random

import pytest

from data_prep.clean.pii import Pii, is_card, is_iban, is_resident_id
from tests.data_prep.clean.samples import cleaned

RULE = Pii()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+x@mail.example.org.", "Write to <EMAIL>."),
        ("邮箱是abc_1@qq.com，谢谢", "邮箱是<EMAIL>，谢谢"),
        ("@handle and a@b and x@y.1", "@handle and a@b and x@y.1"),
        ("from 8.8.8.8, port 53", "from <IP>, port 53"),
        ("at 192.168.1.1 or 127.0.0.1", "at 192.168.1.1 or 127.0.0.1"),
        ("version 1.2.3.4.5 and v8.8.8.8", "version 1.2.3.4.5 and v8.8.8.8"),
        ("8.8.8.256 is none", "8.8.8.256 is none"),
        ("dns 2001:4860:4860::8888 there", "dns <IP> there"),
        ("at 2001:db8::1 in books", "at 2001:db8::1 in books"),
        ("std::vector and 20:30:40", "std::vector and 20:30:40"),
        ("call +44 20 7946 0958 now", "call <PHONE> now"),
        ("call (212) 555-0142 or 212-555-0142.", "call <PHONE> or <PHONE>."),
        ("电话13812345678。", "电话<PHONE>。"),
        ("手机 +86 138-1234-5678", "手机 <PHONE>"),
        ("12812345678 and 138123456789", "12812345678 and 138123456789"),
        ("in 2019-2020, pages 100-200", "in 2019-2020, pages 100-200"),
        ("身份证11010519491231002X号", "身份证<ID>号"),
        ("身份证110105194912310021号", "身份证110105194912310021号"),
        ("card 4111 1111 1111 1111 and 378282246310005", "card <CARD> and <CARD>"),
        ("card 4111 1111 1111 1112", "card 4111 1111 1111 1112"),
        ("IBAN GB82 WEST 1234 5698 7654 32 ok", "IBAN <IBAN> ok"),
        ("IBAN GB83 WEST 1234 5698 7654 32 ok", "IBAN GB83 WEST 1234 5698 7654 32 ok"),
        ("nothing of 3.14159265358979 here", "nothing of 3.14159265358979 here"),
    ],
)
def test_masks(text: str, expected: str) -> None:
    assert cleaned(RULE, text) == expected


def test_kinds_and_masks_are_keys() -> None:
    text = "a@b.cd called 13812345678"
    assert cleaned(Pii(kinds=("phone",)), text) == "a@b.cd called <PHONE>"
    assert cleaned(Pii(email="[mail]"), text) == "[mail] called <PHONE>"
    with pytest.raises(ValueError, match="would be masked itself"):
        Pii(phone="me@example.org")
    assert Pii(email="me@example.org", kinds=("phone",)).email == "me@example.org"


def test_check_digits() -> None:
    assert is_resident_id("11010519491231002X")
    assert not is_resident_id("11010519491331002X")  # month 13
    digits = "410000000000000"
    right = [last for last in range(10) if is_card(f"{digits}{last}23"[:15] + str(last))]
    assert len(right) == 1
    assert not is_card("0" * 16)
    assert is_iban("DE89370400440532013000")
    assert not is_iban("DE89370400440532013001")


def test_every_wrong_digit_is_seen() -> None:
    for number, check in (("11010519491231002X", is_resident_id), ("4111111111111111", is_card)):
        for at in range(len(number) - 1):
            wrong = number[:at] + str((int(number[at]) + 1) % 10) + number[at + 1 :]
            assert not check(wrong)


def test_masking_twice_is_masking_once() -> None:
    rng = random.Random(7)
    parts = ["a@b.cd", "8.8.8.8", "13812345678", "+44 20 7946 0958", "4111 1111 1111 1111", " "]
    parts += ["11010519491231002X", "GB82WEST12345698765432", "86", "-", "x", "（", ".", "2", ", "]
    for _ in range(2000):
        text = "".join(rng.choice(parts) for _ in range(8)) + "z"
        once = cleaned(RULE, text)
        assert once is not None
        assert cleaned(RULE, once) == once
