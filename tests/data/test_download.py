"""Downloads: only what was asked for, only whole, only over https; without a network one clear line, soon."""

import hashlib
import io
import socket
import urllib.error
from email.message import Message

import pytest

from diffvit.data import download
from diffvit.data.download import RemoteFile, fetch, open_https
from diffvit.errors import EnvironmentFault
from diffvit.files import cache_folder

FIRST, SECOND, OTHER = b"first" * 1000, b"second" * 100_000, b"archive" * 5000
A = "https://a.test/d"
URLS = {f"{A}/first.bin": FIRST, f"{A}/second.bin": SECOND, "https://b.test/other.tar.gz": OTHER}


@pytest.fixture(autouse=True)
def _two_sources(monkeypatch):
    files = [RemoteFile(url, len(data), hashlib.sha256(data).hexdigest()) for url, data in URLS.items()]
    monkeypatch.setattr(download, "SOURCES", {"cifar10": ((files[0], files[1]), (files[2],))})


class Host:
    """Answers from memory and keeps count; ``changes`` maps part of a URL to other bytes or to an error."""

    def __init__(self):
        self.changes, self.asked = dict[str, bytes | Exception](), list[str]()

    def __call__(self, url, timeout):
        self.asked.append(url)
        answer = next((value for part, value in self.changes.items() if part in url), URLS[url])
        if isinstance(answer, Exception):
            raise answer
        return Trickle(answer)


class Trickle(io.BytesIO):
    """A slow connection: what has come can be read, and all that was asked for only after minutes."""

    def read(self, size=-1, /):
        raise AssertionError(f"waits for {size} bytes")


@pytest.fixture
def host(monkeypatch):
    found = Host()
    monkeypatch.setattr(download, "open_https", found)
    return found


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_first_source_is_taken_whole(host):
    steps = []
    folder = fetch("cifar10", progress=lambda done, total: steps.append((done, total)))
    assert folder == cache_folder() / "cifar10"
    assert names(folder) == ["first.bin", "second.bin"]
    assert (folder / "second.bin").read_bytes() == SECOND
    assert len(host.asked) == 2
    assert steps[-1] == (len(FIRST) + len(SECOND), len(FIRST) + len(SECOND))
    assert steps == sorted(steps)


def test_what_is_there_is_checked_and_not_fetched_again(tmp_path, host):
    folder = fetch("cifar10", tmp_path)
    assert fetch("cifar10", tmp_path) == folder
    assert len(host.asked) == 2
    (folder / "first.bin").write_bytes(FIRST[:-1] + b"?")
    fetch("cifar10", tmp_path)
    assert len(host.asked) == 4
    assert (folder / "first.bin").read_bytes() == FIRST


BAD_ANSWERS = {
    "cut": SECOND[:-1],
    "long": SECOND + b"x",
    "without end": SECOND * 10,
    "changed": SECOND[:-1] + b"?",
    "empty": b"",
    "no name": urllib.error.URLError("name not known"),
    "slow": TimeoutError("timed out"),
    "reset": ConnectionResetError("reset"),
    "not there": urllib.error.HTTPError("https://a.test", 404, "Not Found", Message(), None),
}


@pytest.mark.parametrize("fault", BAD_ANSWERS)
def test_the_second_source_stands_in_and_without_it_nothing_is_kept(fault, tmp_path, host):
    host.changes = {"second": BAD_ANSWERS[fault], "other": OTHER[:-1]}
    with pytest.raises(EnvironmentFault, match=r"a\.test: .*; b\.test: .*DIFFVIT_DATA") as caught:
        fetch("cifar10", tmp_path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []
    del host.changes["other"]
    fetch("cifar10", tmp_path)
    assert names(tmp_path) == ["other.tar.gz"]  # nothing of the set that did not become whole


def test_a_deadline_ends_a_slow_download(tmp_path, host):
    with pytest.raises(EnvironmentFault, match="too slow"):
        fetch("cifar10", tmp_path, deadline=0.0)
    assert len(host.asked) == 1
    assert names(tmp_path) == []


def test_offline_means_nothing_is_asked(tmp_path, host, monkeypatch):
    monkeypatch.setenv("DIFFVIT_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match="DIFFVIT_OFFLINE"):
        fetch("cifar10", tmp_path)
    assert host.asked == []
    monkeypatch.setenv("DIFFVIT_OFFLINE", "0")
    fetch("cifar10", tmp_path)
    monkeypatch.setenv("DIFFVIT_OFFLINE", "1")
    assert fetch("cifar10", tmp_path) == tmp_path / "cifar10"


def test_a_host_that_does_not_speak_is_given_up_soon(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}/first.bin"
        file = RemoteFile(address, 1, "0" * 64)
        monkeypatch.setattr(download, "SOURCES", {"cifar10": ((file,),)})
        with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1:\d+: .*timed out"):
            fetch("cifar10", tmp_path, timeout=0.2)


def test_only_https_is_opened_and_redirects_may_not_leave_it():
    for url in ("http://a.test/x", "file:///etc/passwd", "ftp://a.test/x"):
        with pytest.raises(urllib.error.URLError, match="https"):
            open_https(url, 1.0)
    handler = download._HttpsOnly()
    request = urllib.request.Request("https://a.test/x")
    with pytest.raises(urllib.error.URLError, match="away from https"):
        handler.redirect_request(request, None, 302, "Found", Message(), "http://a.test/x")
    followed = handler.redirect_request(request, None, 302, "Found", Message(), "https://b.test/y")
    assert followed.full_url == "https://b.test/y"
