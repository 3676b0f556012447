"""Addresses without their secrets, and text that drives no terminal."""

import json
import pickle
import unicodedata

import pytest

from diffaug_datasets.core.errors import PublishError, printable, secrets, shown, without_secrets

SHOWN = {
    "vault://user:hunter2@host/share?sig=SECRETSAS": "vault://host/share",
    "https://host:8080/set/?token=T0ken&x=1#top": "https://host:8080/set/",
    "https://host/set#access_token=T0ken": "https://host/set",
    "https://user:p%40ss@host/set": "https://host/set",
    "ftp://user:pa/ss@host/set/birds": "ftp://host/set/birds",
    "ftp://user:pa/s@s@host/set/birds": "ftp://host/set/birds",
    "sftp://user@host/set": "sftp://host/set",
    "vault:/user:hunter2@host/share?sig=T0ken": "vault:/host/share",
    "http://user:word@[::1]:9000/set?sig=T0ken": "http://[::1]:9000/set",
    "simplecache::https://user:word@host/set?sig=T0ken": "simplecache::https://host/set",
    "zip://a.zip::https://user:word@host/b.zip?sig=T0ken": "zip://a.zip::https://host/b.zip",
    "abfs://container@account.dfs.core.windows.net/set?sig=T0ken": "abfs://container@account.dfs.core.windows.net/set",
    "abfs://name:key@account/set": "abfs://account/set",
}
AS_IT_IS = (
    *("s3://bucket/a@b/c#d", "http://host:80/set", "http://[::1]:80/set", "memory://birds", "org/name", "a folder"),
    *(
        "file:///shelf/a b?c=d#e=f",
        "file://user:word@host/set",
        "C:\\birds",
        "C:/a?b",
        "hf://datasets/org/name@main/x",
        "",
    ),
)


@pytest.mark.parametrize("address", SHOWN)
def test_an_address_is_shown_without_its_secrets(address: str) -> None:
    assert shown(address) == SHOWN[address] == shown(shown(address))
    for text in (f"({address}); try again", f"got {address!r}, expected", f"at {address}: no", f"{address}, {address}"):
        for told in (without_secrets(text), without_secrets(text, address), str(PublishError(text))):
            for word in ("hunter2", "SECRETSAS", "T0ken", "p%40ss", "pa/s", "user", "word", "key"):
                assert word not in told, told
            assert told.replace(SHOWN[address], "") == text.replace(address, "")


@pytest.mark.parametrize("address", AS_IT_IS)
def test_an_address_without_secrets_is_what_it_is(address: str) -> None:
    assert shown(address) == without_secrets(address, address) == address
    assert secrets(address) == ()


def test_what_a_library_says_of_the_parts_of_an_address() -> None:
    address = "vault://me:p%40ss word@host/me/x?sig=S%2Bx"
    said = "no login as me with p@ss word, S+x, S%2Bx at vault://host/me/x of some medium"
    assert without_secrets(said, address) == "no login as *** with ***, ***, *** at vault://host/me/x of some medium"
    assert without_secrets("got 403 for https://cdn.host/a?X-Amz-Signature=abc.") == "got 403 for https://cdn.host/a."


def test_characters_that_drive_a_terminal_are_spelt_out() -> None:
    hostile = "\x1b]0;title\x07\x1b[31mred\r\x08\x7f\x9b2J\u202eevil\u2066\u200f\u2028\udc80\ufeff\0"
    told = printable(f"a\tb\n{hostile}")
    assert told.startswith("a\tb\n\\u001b]0;title\\u0007\\u001b[31mred\\u000d\\u0008\\u007f\\u009b2J\\u202eevil")
    assert not [char for char in told if unicodedata.category(char) in ("Cc", "Cs", "Cf", "Zl") and char not in "\n\t"]
    told.encode()
    for text in ("Straßenbahn 路面電車", "👩‍👩‍👧", "نمی‌خواهم", "a\tb\nc", ""):
        assert printable(text) == text
    assert json.loads(printable(json.dumps([hostile], ensure_ascii=False))) == [hostile]
    assert str(PublishError(hostile)) == printable(hostile)


def test_an_error_travels_between_processes() -> None:
    error = PublishError("https://host/x?sig=T0ken \x1b")
    assert pickle.loads(pickle.dumps(error)).args == error.args == ("https://host/x \\u001b",)  # noqa: S301
