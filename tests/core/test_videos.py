"""The same videos make the same set from a folder with a table, from captions beside them and from shards; whatever is
wrong with a file is counted with its reason and never fatal."""

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from footage import SIZE, coded, pan, read_numbers, write_footage

from microcinema_core.errors import MicroCinemaError
from microcinema_core.training.data.buckets import assign, bucket_sizes
from microcinema_core.training.data.clips import Unusable, read_clip
from microcinema_core.training.data.order import generator
from microcinema_core.training.data.videos import VideoSet


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("originals")
    codecs = ("h264", "h264 open", "h265", "h264")
    return [
        write_footage(folder / f"{number}", coded(pan(60 + number, index=number)), 20, codec)
        for number, codec in enumerate(codecs)
    ]


CAPTIONS = ["a boat, at sea", 'she says "hello"', "größer\nals   zuvor ", "une forêt"]


@pytest.fixture
def webvid(tmp_path, originals) -> Path:
    """A folder as WebVid's downloader leaves it, with its table."""
    folder = tmp_path / "webvid"
    (folder / "videos" / "0001_0050").mkdir(parents=True)
    rows = ["videoid,contentUrl,duration,page_dir,name"]
    for number, original in enumerate(originals):
        shutil.copy(original, folder / "videos" / "0001_0050" / f"{1000 + number}.mp4")
        caption = CAPTIONS[number].replace('"', '""')
        rows.append(f'{1000 + number},https://host/{number}/preview.mp4,PT00H00M03S,0001_0050,"{caption}"')
    (folder / "table.csv").write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    return folder


def write_shards(folder: Path, originals: list[Path], per_shard: int = 2) -> str:
    """With WebDataset's own writer, named as by video2dataset: a count as the key, the table's columns in json."""
    webdataset = pytest.importorskip("webdataset")
    folder.mkdir(parents=True)
    for first in reversed(range(0, len(originals), per_shard)):
        with webdataset.TarWriter(str(folder / f"{first // per_shard:05}.tar")) as shard:
            for number in reversed(range(first, min(first + per_shard, len(originals)))):
                details = {"caption": CAPTIONS[number], "key": f"{number:09}", "videoid": 1000 + number}
                sample = {"mp4": originals[number].read_bytes(), "txt": CAPTIONS[number], "json": details}
                shard.write({"__key__": f"{number:09}", **sample})
    return str(folder / f"{{00000..{(len(originals) - 1) // per_shard:05}}}.tar")


# --- the same from everywhere ---


def test_table_and_shards_make_the_same_set(tmp_path, webvid, originals):
    table = VideoSet.from_folder(webvid, webvid / "table.csv")
    shards = VideoSet.from_shards(write_shards(tmp_path / "shards", originals))
    assert [video.id for video in table] == [video.id for video in shards] == ["1000", "1001", "1002", "1003"]
    assert [video.caption for video in table] == [video.caption for video in shards]
    assert table[2].caption == "größer als zuvor" and table[1].caption == 'she says "hello"'
    assert table.identity == shards.identity and not table.skipped and not shards.skipped
    assert [video.known for video in table] == [video.known for video in shards]
    for index in range(4):
        clips = [videos.random_clip(index, generator(0, 7, index), 5, 4, SIZE) for videos in (table, shards)]
        assert torch.equal(*clips) and np.diff(read_numbers(clips[0])).tolist() == [5] * 4
        assert clips[0].shape == (5, 3, SIZE[1], SIZE[0])


def test_captions_beside_the_files(tmp_path, originals):
    folder = tmp_path / "a folder"
    names = ["one.mp4", "ünter/zwei drei.MP4", "deep/er/a.b.c.mov"]
    for name, original, caption in zip(names, originals, CAPTIONS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, folder / name)
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    (folder / ".hidden").mkdir()
    shutil.copy(originals[0], folder / ".hidden" / "a.mp4")
    shutil.copy(originals[0], folder / ".a.mp4")
    (folder / "notes.md").write_text("no video")
    videos = VideoSet.from_folder(folder)
    assert [video.id for video in videos] == ["deep/er/a.b.c", "one", "ünter/zwei drei"]
    assert [video.caption for video in videos] == ["größer als zuvor", "a boat, at sea", 'she says "hello"']
    assert videos.skipped == {}
    with videos[1].opened() as source:
        assert torch.equal(videos.clip(1, 0.3, 5, 4, SIZE), read_clip(source, 0.3, 5, 4, SIZE))


@pytest.mark.parametrize("layout", ["{page}/{id}.mp4", "{id}.mp4", "videos/{id}.mp4", "{page}/{id}.webm", "{url}"])
def test_the_layouts_that_are_in_use_are_found(tmp_path, originals, layout):
    for number, original in enumerate(originals[:2]):
        path = tmp_path / layout.format(page="p_1", id=number, url=f"clip-{number}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, path)
    rows = [f"{number},https://host/{number}/clip-{number}.mp4?x=1,p_1,a caption" for number in range(2)]
    (tmp_path / "t.csv").write_text("\n".join(["videoid,contentUrl,page_dir,name", *rows]))
    videos = VideoSet.from_folder(tmp_path, tmp_path / "t.csv")
    assert [video.id for video in videos] == ["0", "1"]


def test_the_identity_tells_captions_files_and_ids_apart(webvid, originals):
    def identity() -> str:
        return VideoSet.from_folder(webvid, webvid / "table.csv").identity

    before = identity()
    assert identity() == before
    table = webvid / "table.csv"
    text = table.read_bytes()
    table.write_bytes(text.replace("forêt".encode(), b"foret"))
    caption = identity()
    head, *rows, end = text.split(b"\r\n")
    table.write_bytes(b"\r\n".join([head, *reversed(rows), end]))
    assert identity() == before  # the table's order does not matter
    with (webvid / "videos" / "0001_0050" / "1003.mp4").open("ab") as file:
        file.write(b"\0" * 8)
    assert len({before, caption, identity()}) == 3


# --- what is skipped ---


def test_whatever_is_wrong_is_counted_with_its_reason(webvid, originals):
    folder = webvid / "videos" / "0001_0050"
    content = originals[0].read_bytes()
    bad = {"2000": b"", "2001": b"text\n" * 500, "2002": content[: len(content) // 2]}
    for name, data in bad.items():
        (folder / f"{name}.mp4").write_bytes(data)
    shutil.copy(originals[0], folder / "2003.mp4")
    os.symlink(folder / "gone.mp4", folder / "2005.mp4")
    with (webvid / "table.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"{name},,,0001_0050,a caption\n" for name in [*bad, "2004", "2005", "1000"])
        file.write("2003,,,0001_0050,  \n,,,0001_0050,no id\n2006\n")
    calls = []
    videos = VideoSet.from_folder(webvid, webvid / "table.csv", progress=lambda *call: calls.append(call))
    assert [video.id for video in videos] == ["1000", "1001", "1002", "1003"]
    assert videos.skipped["2000"] == "an empty file" and videos.skipped["2003"] == "no caption"
    assert videos.skipped["2001"].startswith("damaged") and videos.skipped["2002"].startswith("damaged")
    assert videos.skipped["2004"] == videos.skipped["2005"] == videos.skipped["2006"] == "no such file"
    assert videos.reasons() == {
        "no such file": 3, "damaged": 2, "an empty file": 1, "no caption": 1, "no videoid": 1,
        "another video has the same id": 1,
    }  # fmt: skip
    assert sum(videos.reasons().values()) == len(videos.skipped) == 9
    assert calls[-1] == (7, 7) and [count for count, _ in calls] == sorted(count for count, _ in calls)


def test_without_captions_all_videos_are_of_use(tmp_path, originals):
    shutil.copy(originals[0], tmp_path / "a.mp4")
    with pytest.raises(MicroCinemaError, match=r"no usable video in .*skipped: no caption \(1\): mend"):
        VideoSet.from_folder(tmp_path)
    assert VideoSet.from_folder(tmp_path, captions=False)[0].caption == ""


def test_bad_input_ends_in_one_sentence(tmp_path, originals):
    with pytest.raises(MicroCinemaError, match="is no folder"):
        VideoSet.from_folder(tmp_path / "missing")
    with pytest.raises(MicroCinemaError, match="no usable video in .*: name a folder with videos"):
        VideoSet.from_folder(tmp_path)
    with pytest.raises(MicroCinemaError, match="table .* cannot be read"):
        VideoSet.from_folder(tmp_path, tmp_path / "missing.csv")
    for text, missing in {
        "videoid,caption\n": "name",
        "": "videoid and no name",
        "a\tb\n": "videoid and no name",
    }.items():
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(MicroCinemaError, match=f"has no column {missing}: its first line must name"):
            VideoSet.from_folder(tmp_path, tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text('videoid,name\n1,"' + "x" * 200_000)
    with pytest.raises(MicroCinemaError, match="is no CSV .*check its quotes"):
        VideoSet.from_folder(tmp_path, tmp_path / "t.csv")
    with pytest.raises(MicroCinemaError, match=r"the shard '.*-001.tar' and 1 more does not exist"):
        VideoSet.from_shards(str(tmp_path / "a-{001..002}.tar"))
    with pytest.raises(MicroCinemaError, match="there is no shard"):
        VideoSet.from_shards(str(tmp_path / "a-*.tar"))
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.add(originals[0], "a.mp4")
    with pytest.raises(MicroCinemaError, match="is compressed: unpack it"):
        VideoSet.from_shards(tmp_path / "b.tar")


def test_links_are_followed_but_not_in_circles(tmp_path, originals):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    shutil.copy(originals[0], elsewhere / "deep" / "a.mp4")
    folder = tmp_path / "folder"
    folder.mkdir()
    os.symlink(elsewhere, folder / "link")
    os.symlink(folder, folder / "circle")
    os.symlink(originals[1], folder / "b.mp4")
    os.mkfifo(folder / "pipe.mp4")
    videos = VideoSet.from_folder(folder, captions=False)
    assert [video.id for video in videos] == ["b", "link/deep/a"]
    assert videos.skipped == {"pipe": "a pipe or device"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_that_are_no_text(tmp_path, originals):
    shutil.copy(originals[0], os.fsencode(tmp_path) + b"/a\xff.mp4")
    videos = VideoSet.from_folder(tmp_path, captions=False, cache=tmp_path / "cache")
    assert len(videos) == len(videos.identity) / 32 == 1
    assert videos.clip(0, 0, 2, 4, SIZE).shape[0] == 2


def test_a_broken_shard_gives_what_is_before(tmp_path, originals):
    shards = write_shards(tmp_path / "shards", originals, 4)
    path = tmp_path / "shards" / "00000.tar"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    videos = VideoSet.from_shards(shards)
    assert 1 <= len(videos) < 4
    assert "a broken shard" in videos.reasons()
    (tmp_path / "text.tar").write_text("no tar\n" * 200)
    both = VideoSet.from_shards([path, tmp_path / "text.tar"])
    assert both.reasons()["a broken shard"] == 2 and both.identity == videos.identity


def test_samples_without_a_video_and_names_without_a_rule(tmp_path, originals):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("dir.x/ä b.mp4", "k.cam1.mp4", ".hidden.mp4", "plain", "t.jpg"):
            tar.add(originals[0], name)
            key = name.partition("/")[0] + "/ä b" if "/" in name else name.partition(".")[0]
            if key and name != "plain":
                text = tarfile.TarInfo(f"{key}.txt")
                text.size = 1
                tar.addfile(text, io.BytesIO(b"c"))
    videos = VideoSet.from_shards(tmp_path / "a.tar")
    assert [video.id for video in videos] == ["dir.x/ä b", "k"]
    assert videos.skipped == {"t": "no video in the sample"}


# --- time and memory ---


def test_a_shard_is_read_once_and_again_when_it_changes(tmp_path, originals):
    shards = write_shards(tmp_path / "shards", originals, 4)
    path = tmp_path / "shards" / "00000.tar"
    identity = VideoSet.from_shards(shards).identity
    index = path.with_name("00000.tar.index.jsonl")
    assert json.loads(index.read_text().splitlines()[1])["id"] == "1003"
    index.write_text(index.read_text().replace("forêt", "forest").replace("for\\u00eat", "forest"))
    assert VideoSet.from_shards(shards).identity != identity  # the index was used
    os.utime(path)
    assert VideoSet.from_shards(shards).identity == identity  # and now made anew
    index.write_text(index.read_text()[:-30])
    assert VideoSet.from_shards(shards).identity == identity


def test_a_probe_is_kept_for_as_long_as_its_file_is_the_same(webvid, originals, monkeypatch):
    from microcinema_core.training.data import probes

    counted: Counter[str] = Counter()
    really = probes.probe
    monkeypatch.setattr(probes, "probe", lambda source: counted.update(["probe"]) or really(source))
    cache = webvid.parent / "cache"
    (webvid / "videos" / "0001_0050" / "1001.mp4").write_bytes(b"no video")

    def read() -> tuple[int, VideoSet]:
        counted.clear()
        videos = VideoSet.from_folder(webvid, webvid / "table.csv", cache=cache)
        return counted["probe"], videos

    first, videos = read()
    assert first == 4 and len(videos) == 3
    again, same = read()
    assert again == 0 and same.identity == videos.identity and same.skipped == videos.skipped
    shutil.copy(originals[1], webvid / "videos" / "0001_0050" / "1001.mp4")
    assert read()[0] == 1
    records = cache / "probes.jsonl"
    records.write_bytes(records.read_bytes()[:-9])  # a process was killed while it wrote
    assert read()[0] == 1 and read()[0] == 0


def test_another_process_reads_the_same_set(webvid):
    videos = VideoSet.from_folder(webvid, webvid / "table.csv")
    with get_context("spawn").Pool(1) as pool:
        captions, clip = pool.apply(_in_process, (pickle.dumps(videos),))
    assert captions == [video.caption for video in videos]
    assert torch.equal(torch.from_numpy(clip), videos.clip(2, 0.5, 5, 4, SIZE))


def _in_process(data: bytes):
    videos = pickle.loads(data)
    return [video.caption for video in videos], videos.clip(2, 0.5, 5, 4, SIZE).numpy()


def test_the_list_is_removed_with_the_set(webvid):
    videos = VideoSet.from_folder(webvid, webvid / "table.csv")
    path = Path(videos._path)
    assert path.exists()
    del videos
    assert not path.exists()


def test_a_cut_or_damage_is_tried_elsewhere_and_then_told(tmp_path):
    frames = [*pan(30, SIZE, 1), *pan(90, SIZE, 3)]
    write_footage(tmp_path / "a.mp4", frames, 20)
    write_footage(tmp_path / "b.mp4", [next(pan(1, SIZE, index)) for index in range(11) for _ in range(8)], 20)
    videos = VideoSet.from_folder(tmp_path, captions=False)
    for sample in range(12):
        assert videos.random_clip(0, generator(0, 0, sample), 5, 4, SIZE, tries=12).shape[0] == 5
    with pytest.raises(Unusable, match="a cut within the clip in each of 4 tries"):
        videos.random_clip(1, generator(0, 0, 0), 5, 4, SIZE)
    with pytest.raises(Unusable, match="shorter than a clip of 50 frames at 4 fps"):
        videos.random_clip(0, generator(0, 0, 0), 50, 4, SIZE)


# --- buckets ---


def test_the_sizes_of_buckets_are_about_equal_and_multiples():
    for area, multiple in ((320 * 320, 8), (320 * 320, 64), (256 * 256, 64), (512 * 512, 64)):
        sizes = bucket_sizes(area, multiple)
        assert (round(area**0.5), round(area**0.5)) in sizes
        for width, height in sizes:
            assert width % multiple == 0 and height % multiple == 0
            assert (height, width) in sizes
            assert abs(np.log(width * height / area)) < (0.06 if multiple == 8 else 0.3)
    with pytest.raises(MicroCinemaError, match="too small"):
        bucket_sizes(1000)


def test_a_video_gets_the_size_of_the_nearest_ratio():
    sizes = bucket_sizes(320 * 320)
    shapes = np.array([[1920, 1080], [1080, 1920], [640, 480], [500, 500], [2350, 1000], [320, 240]])
    buckets = assign(shapes, sizes)
    for (width, height), bucket in zip(shapes.tolist(), buckets.tolist(), strict=True):
        distances = [abs(np.log(w / h) - np.log(width / height)) for w, h in sizes]
        assert distances[bucket] == min(distances)
