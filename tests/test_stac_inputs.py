"""Lists of images: text files, and STAC items, item collections and catalogs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import FileServer

from geoseg.errors import SourceError
from geoseg.imagery import chunks, remote, stac
from geoseg.imagery.inputs import find_image, find_images

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def item(name: str = "one", **assets: dict) -> dict:
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "properties": {}, "links": [],
        "geometry": None, "assets": assets,
    }  # fmt: skip


def asset(href: str, kind: str = TIFF, *roles: str) -> dict:
    return {"href": href, "type": kind, "roles": list(roles)}


def write(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    yield
    chunks.drop_cache()
    remote._known.clear()


# --- lists -------------------------------------------------------------------------------------


def test_a_list_names_files_folders_and_addresses(make_raster, tmp_path, monkeypatch):
    a, b = make_raster("deep/a.tif"), make_raster("deep/er/b.tif")
    text = "\ufeff# the flight\n\ndeep/a.tif\r\ndeep/er  \nhttps://me:pw@h.org/x.tif?sig=1\n"
    (tmp_path / "images.txt").write_text(text)
    expected = tuple(sorted([str(a), str(b), "https://h.org/x.tif"]))
    assert find_images([tmp_path / "images.txt"]) == expected
    monkeypatch.chdir(tmp_path)
    assert find_images(["@images.txt"]) == expected
    (tmp_path / "images").write_text("deep/a.tif")
    assert find_images(["@images"]) == (str(a),)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a.tif\nnothing.tif\n", r"images.txt, line 2: .*nothing.tif: no such file"),
        ("# nothing\n", "names no image"),
        ("@images.txt", "may not name a list"),
        ("images.txt", "may not name a list"),
        ("/vsizip/x.zip", "line 1: .*not read"),
        ("a\0b", "no list of images"),
    ],
)
def test_a_list_says_what_is_wrong_with_it(make_raster, tmp_path, text, match):
    make_raster("a.tif")
    (tmp_path / "images.txt").write_text(text)
    with pytest.raises(SourceError, match=match):
        find_images([tmp_path / "images.txt"])


def test_a_list_that_is_no_text_or_not_there(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SourceError, match="not UTF-8"):
        find_images([tmp_path / "x.txt"])
    with pytest.raises(SourceError, match="list cannot be read"):
        find_images([f"@{tmp_path}/y.txt"])


# --- STAC --------------------------------------------------------------------------------------


def test_an_item_names_its_image(make_raster, tmp_path):
    image = make_raster("data/a.tif")
    path = write(
        tmp_path / "items" / "item.json",
        item(
            thumbnail=asset("t.png", "image/png", "thumbnail"),
            visual=asset("../data/a.tif", TIFF, "visual"),
            red=asset("red.tif", TIFF, "data"),
            meta=asset("m.xml", "application/xml", "metadata"),
        ),
    )
    assert find_images([path]) == (str(image),)
    with pytest.raises(SourceError, match=r"no asset 'green'; --asset may be meta, red, thumb"):
        find_images([path], asset="green")
    assert find_image(path, asset="red") == str(tmp_path / "items" / "red.tif")


@pytest.mark.parametrize(
    ("assets", "chosen"),
    [
        ({"image": asset("a.tif")}, "a.tif"),
        ({"x": asset("a.tif", TIFF, "data"), "y": asset("b.tif", TIFF, "overview")}, "a.tif"),
        ({"x": {"href": "a.tif"}, "y": {"href": "b.json"}}, "a.tif"),
        ({"visual": asset("v.tif", TIFF, "visual"), "visual_jp2": asset("v.jp2", "image/jp2", "visual")}, "v.tif"),
        ({"B1": asset("1.tif", TIFF, "data"), "B2": asset("2.tif", TIFF, "data")}, None),
        ({"t": asset("t.png", "image/png", "thumbnail")}, None),
        ({"t": asset("t.laz", "application/vnd.laszip")}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_which_asset_is_taken(tmp_path, assets, chosen):
    path = write(tmp_path / "item.json", item(**assets))
    if chosen is None:
        with pytest.raises(SourceError, match="asset"):
            find_images([path])
    else:
        assert find_images([path]) == (str(tmp_path / chosen),)


def test_an_item_collection_and_a_static_catalog(tmp_path):
    items = [item(f"i{n}", image=asset(f"{n}.tif", TIFF, "data")) for n in range(3)]
    path = write(tmp_path / "all.json", {"type": "FeatureCollection", "features": items})
    expected = tuple(str(tmp_path / f"{n}.tif") for n in range(3))
    assert find_images([path]) == expected
    for n, one in enumerate(items):
        write(tmp_path / f"i{n}.json", one)
    links = [{"rel": "item", "href": f"./i{n}.json"} for n in range(3)]
    links += [{"rel": "self", "href": "collection.json"}, {"rel": "root", "href": "catalog.json"}]
    write(tmp_path / "collection.json", {"type": "Collection", "links": links})
    # a catalog that leads to itself is walked once
    children = [{"rel": "child", "href": name} for name in ("collection.json", "catalog.json")]
    path = write(tmp_path / "catalog.json", {"type": "Catalog", "links": children})
    assert find_images([path]) == expected


def test_items_of_a_server(make_raster, tmp_path):
    make_raster("served/data/a.tif")
    write(tmp_path / "served/items/one", item(image=asset("../data/a.tif?v=1", TIFF, "data")))
    page = {
        "type": "FeatureCollection",
        "features": [],
        "links": [{"rel": "next", "href": "p2.json"}],
    }
    write(tmp_path / "served/items/p1.json", page)
    second = [item(image=asset("/data/a.tif", TIFF, "data"))]
    write(tmp_path / "served/items/p2.json", {"type": "FeatureCollection", "features": second})
    with FileServer(tmp_path / "served") as server:
        # an address need not say that JSON is behind it
        (found,) = find_images([f"{server.url}/items/one"])
        assert found.startswith(f"{server.url}/data/a.tif#")
        assert find_images([f"{server.url}/items/p1.json"]) == (f"{server.url}/data/a.tif",)
        with pytest.raises(SourceError, match="answers 404"):
            find_images([f"{server.url}/items/p3.json"])


@pytest.mark.parametrize("href", ["file:///etc/passwd", "/vsizip/x.zip/x.tif", "ftp://h/x.tif"])
def test_a_document_of_a_server_names_no_file_of_this_machine(tmp_path, href):
    write(tmp_path / "item.json", item(image=asset(href, TIFF, "data")))
    with FileServer(tmp_path) as server, pytest.raises(SourceError, match=r"may not|leads to"):
        find_images([f"{server.url}/item.json"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "is no STAC"),
        ('{"type": "Polygon"}', "is no STAC"),
        ('{"type": "Collection"}', "leads to no STAC item"),
        ('{"type": "Collection", "links": 3}', "leads to no STAC item"),
        ('{"type": "FeatureCollection", "features": [7]}', "no assets"),
        ('{"type": "Feature", "assets": [1]}', "no assets"),
        ('{"type": "Feature", "assets": {"a": 1}}', "no raster asset"),
    ],
)
def test_what_is_no_stac_is_refused(tmp_path, text, match):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SourceError, match=match):
        find_images([tmp_path / "x.json"])


def test_the_number_of_images_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(stac, "MOST_IMAGES", 2)
    items = [item(f"i{n}", image=asset(f"{n}.tif", TIFF, "data")) for n in range(3)]
    path = write(tmp_path / "all.json", {"type": "FeatureCollection", "features": items})
    with pytest.raises(SourceError, match="more than 2 images"):
        find_images([path])
