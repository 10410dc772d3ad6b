"""The download, against a server on this machine with an archive of the same layout."""

import http.server
import json
import multiprocessing
import threading
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor

import pytest

from jobs import JobError
from jobs.datasets.chest_xray import download
from jobs.datasets.chest_xray.source import sort


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one archive; knows ranges, and can hang up early or ignore ranges."""

    data = b""
    ranges = True
    hang_up_after: int | None = None
    wait: threading.Event | None = None  # before the body
    requests: list[str | None]

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start >= len(self.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.data)}")
            self.end_headers()
            return
        if self.wait:
            self.wait.wait(60)
        body = self.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.hang_up_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(kaggle, tmp_path, monkeypatch):
    archive = tmp_path / "served.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in kaggle.rglob("*.jpeg"):
            file.write(path, f"chest_xray/{path.relative_to(kaggle)}")
    handler = type("Handler", (Server,), {"data": archive.read_bytes(), "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        handler.url = f"http://127.0.0.1:{running.server_port}/archive"
        monkeypatch.setattr(download, "_CHUNK", 1000)
        yield handler
        running.shutdown()


def test_whole_and_recorded(server, tmp_path):
    seen = []
    archive = download.download(tmp_path / "d", lambda done, total: seen.append((done, total)), server.url)
    assert archive.read_bytes() == server.data
    assert seen[-1] == (len(server.data), len(server.data)) and len(seen) > 10
    record = json.loads(archive.with_name("ChestXRay2017.zip.json").read_text())
    assert record["size"] == len(server.data)
    assert len(sort(archive).splits["test"]) == 9


def test_there_already_is_not_fetched_again(server, tmp_path):
    for _ in range(2):
        download.download(tmp_path / "d", url=server.url)
    assert server.requests == [None]


def test_goes_on_after_an_interruption(server, tmp_path):
    server.hang_up_after = 5000
    with pytest.raises(JobError, match="run the same command again to go on"):
        download.download(tmp_path / "d", url=server.url)
    server.hang_up_after = None
    archive = download.download(tmp_path / "d", url=server.url)
    assert server.requests == [None, "bytes=5000-"]
    assert archive.read_bytes() == server.data


def test_starts_over_where_the_server_knows_no_ranges(server, tmp_path):
    server.ranges = False
    (tmp_path / "d").mkdir()
    (tmp_path / "d/ChestXRay2017.zip.part").write_bytes(b"something old")
    assert download.download(tmp_path / "d", url=server.url).read_bytes() == server.data


def test_a_complete_part_is_taken_and_a_longer_one_removed(server, tmp_path):
    (tmp_path / "d").mkdir()
    part = tmp_path / "d/ChestXRay2017.zip.part"
    part.write_bytes(server.data)
    assert download.download(tmp_path / "d", url=server.url).read_bytes() == server.data
    (tmp_path / "d/ChestXRay2017.zip").unlink()
    part.write_bytes(server.data + b"more")
    with pytest.raises(JobError, match="larger than the archive"):
        download.download(tmp_path / "d", url=server.url)
    assert part.stat().st_size == 0


def test_a_changed_archive_is_an_error(server, tmp_path):
    archive = download.download(tmp_path / "d", url=server.url)
    data = bytearray(archive.read_bytes())
    data[100] ^= 1
    archive.write_bytes(data)
    with pytest.raises(JobError, match=r"has sha256 .* recorded was .*; delete it to fetch it again"):
        download.download(tmp_path / "d", url=server.url)


def test_a_page_in_place_of_the_archive_is_not_kept(server, tmp_path):
    server.data = b"<html>Please log in.</html>"
    with pytest.raises(JobError, match=r"gave cannot be used \(it is no zip file\) and was removed; run the same"):
        download.download(tmp_path / "d", url=server.url)
    assert list((tmp_path / "d").iterdir()) == []


def test_a_part_of_another_version_is_not_kept(server, tmp_path):
    (tmp_path / "d").mkdir()
    part = tmp_path / "d/ChestXRay2017.zip.part"
    part.write_bytes(server.data[:50] + bytes(5000))  # the end, where a zip is told by, is the server's
    with pytest.raises(JobError, match=r"cannot be used \((chest_xray/.* in it|it) is damaged.*\) and was removed"):
        download.download(tmp_path / "d", url=server.url)
    assert list((tmp_path / "d").iterdir()) == []
    assert download.download(tmp_path / "d", url=server.url).read_bytes() == server.data


def test_an_empty_file_in_the_archive_is_no_damage(server, tmp_path):
    with zipfile.ZipFile(path := tmp_path / "served.zip", "a") as file:
        file.writestr("__MACOSX/._NORMAL", b"")
    server.data = path.read_bytes()
    assert download.download(tmp_path / "d", url=server.url).read_bytes() == server.data


def test_two_at_once_do_not_write_into_one_part(server, tmp_path):
    server.wait = threading.Event()
    first = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # a lock is one of a process
    with first as process:
        running = process.submit(download.download, tmp_path / "d", url=server.url)
        while not server.requests:
            assert not running.done(), running.result()
            time.sleep(0.02)
        with pytest.raises(JobError, match=r"another process is fetching into .*part; wait for it, or stop it"):
            download.download(tmp_path / "d", url=server.url)
        server.wait.set()
        assert running.result().read_bytes() == server.data
    assert server.requests == [None]


@pytest.mark.parametrize("text", ["", "[]", '{"size": 3}'])
def test_a_record_that_says_nothing_is_an_error(server, tmp_path, text):
    archive = download.download(tmp_path / "d", url=server.url)
    archive.with_name("ChestXRay2017.zip.json").write_text(text)
    with pytest.raises(JobError, match=r"zip.json does not say size and sha256 of .*zip; delete it if you trust that"):
        download.download(tmp_path / "d", url=server.url)


def test_no_network_names_the_file_and_its_place(tmp_path):
    with pytest.raises(
        JobError, match=r"or fetch http://127.0.0.1:9/x by other means and put it at .*ChestXRay2017.zip"
    ):
        download.download(tmp_path, url="http://127.0.0.1:9/x")
