"""The report's promises: true pictures, safe markup, and a page that works alone."""

import base64
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from bs4 import BeautifulSoup
from made_browser import CHROMIUM, Page, browser
from PIL import Image

from diffseglung.calibration import calibrations
from diffseglung.labels import TISSUES, Structure, Tissue
from diffseglung.report import CHECKS, CasePictures, case_pictures, case_preview, flags, write_report
from diffseglung.report.pictures import VIEWS, cut, lung_box, most_telling

SPACING_MM = (5.0, 3.0, 2.0)
HOSTILE = '</script><script>document.title="taken"</script> "Größe" \u202e患者'


def chest() -> tuple[np.ndarray, np.ndarray]:
    """Two boxes of lung; ground glass high in the patient's right one, consolidation low in the left one."""
    hu = np.full((40, 60, 80), 40, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    for x in (slice(12, 36), slice(44, 68)):
        labels[6:34, 10:50, x] = Tissue.HEALTHY
    labels[28:32, 20:30, 16:26] = Tissue.GROUND_GLASS
    labels[8:12, 30:44, 50:62] = Tissue.CONSOLIDATION
    for tissue, value in {Tissue.HEALTHY: -850, Tissue.GROUND_GLASS: -600, Tissue.CONSOLIDATION: -20}.items():
        hu[labels == tissue] = value
    return hu, labels


def row(case_id: str, **more: object) -> dict[str, object]:
    """A row of results within all bounds."""
    share = {f"{t.key}_pct": 0.0 for t in TISSUES} | {"healthy_pct": 94.0, "ground_glass_pct": 6.0}
    volume = {key.replace("_pct", "_ml"): 45 * value for key, value in share.items()}
    fine = {"status": "ok", "reason": None, "lung_ml": 4500.0, "mean_lung_hu": -810.0, "laa950_pct": 1.5}
    seen = {"uncertainty": 0.2, "seconds": 31.0, "right_lung_ml": 2400.0, "left_lung_ml": 2100.0}
    return {"case_id": case_id} | share | volume | fine | seen | more


def plane_labels(pictures: CasePictures, name: str) -> np.ndarray:
    plane = pictures.planes[name]
    data = zlib.decompress(base64.b64decode(plane.labels))
    return np.frombuffer(data, np.uint8).reshape(len(plane.slices), *plane.size_px)


def image_of(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L"))


@pytest.fixture(scope="module")
def pictures() -> CasePictures:
    return case_pictures(*chest(), SPACING_MM)


@pytest.fixture
def page(pictures: CasePictures, tmp_path: Path) -> Path:
    rows = [
        row("scan-10"),
        row("scan-9"),
        row("small", lung_ml=900.0),
        row(HOSTILE),
        {"case_id": "broken", "status": "failed", "reason": "3 slices are missing", "lung_ml": float("nan")},
        {"case_id": "scout", "status": "skipped", "reason": "a localizer, not a volume"},
    ]
    path = tmp_path / "report.html"
    write_report(
        path, rows, {"scan-10": pictures, HOSTILE: pictures}, title=HOSTILE, about={"recipe": HOSTILE}
    )
    return path


class TestPictures:
    def test_right_is_at_the_left_and_the_head_is_up(self, pictures: CasePictures) -> None:
        coronal = plane_labels(pictures, "coronal").max(axis=0)
        high, at_left = (np.argwhere(coronal == Tissue.GROUND_GLASS).mean(axis=0) / coronal.shape) < 0.5
        assert high
        assert at_left
        low, at_right = (np.argwhere(coronal == Tissue.CONSOLIDATION).mean(axis=0) / coronal.shape) > 0.5
        assert low
        assert at_right
        assert (VIEWS["coronal"].left, VIEWS["coronal"].top) == ("R", "H")

    def test_a_sagittal_slice_looks_to_the_left_with_the_back_at_the_right(self) -> None:
        volume = np.zeros((4, 6, 5), np.uint8)
        volume[3, 5, 2] = 1  # the highest and hindmost corner
        assert tuple(np.argwhere(cut(volume, "sagittal", 2))[0]) == (0, 5)
        assert (VIEWS["sagittal"].left, VIEWS["sagittal"].right) == ("A", "P")

    def test_shapes_are_true_in_mm(self, pictures: CasePictures) -> None:
        _, labels = chest()
        box = labels[lung_box(labels, SPACING_MM)]
        z, y, x = (size * step for size, step in zip(box.shape, SPACING_MM, strict=True))
        for name, (height_mm, width_mm) in {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}.items():
            height, width = pictures.planes[name].size_px
            assert abs(height * pictures.mm_per_px - height_mm) <= pictures.mm_per_px
            assert abs(width * pictures.mm_per_px - width_mm) <= pictures.mm_per_px

    def test_labels_come_back_exactly_and_lie_on_their_ct(self, pictures: CasePictures) -> None:
        for name, plane in pictures.planes.items():
            labels = plane_labels(pictures, name)
            grey = np.stack([image_of(ct) for ct in plane.ct])
            assert set(np.unique(labels)) <= {0, 1, Tissue.GROUND_GLASS, Tissue.CONSOLIDATION}
            # Window -1350 to 150 HU in 255 steps; WebP is lossy, so means may be off by a few steps.
            assert np.median(grey[labels == Tissue.HEALTHY]) == pytest.approx(500 * 255 / 1500, abs=4)
            assert np.median(grey[labels == 0]) == pytest.approx(1390 * 255 / 1500, abs=6)

    def test_a_plane_opens_on_the_slice_with_most_disease(self, pictures: CasePictures) -> None:
        _, labels = chest()
        for plane in (pictures.planes["axial"], pictures.planes["sagittal"]):
            axis = 0 if plane is pictures.planes["axial"] else 2
            diseased = np.take(labels, plane.slices, axis) > Tissue.HEALTHY
            per_slice = diseased.sum(axis=tuple(a for a in range(3) if a != axis))
            assert per_slice[plane.start] == per_slice.max() > 0
        assert most_telling(np.minimum(labels, 1), 0) == 6  # all healthy: the first with most lung

    def test_the_histogram_holds_every_millilitre(self, pictures: CasePictures) -> None:
        _, labels = chest()
        voxel_ml = np.prod(SPACING_MM) / 1000
        assert set(pictures.histogram_ml) == {"healthy", "ground_glass", "consolidation"}
        for key, volumes in pictures.histogram_ml.items():
            volume_ml = np.count_nonzero(labels == Tissue[key.upper()]) * voxel_ml
            assert sum(volumes) == pytest.approx(volume_ml, abs=0.001)
        peak = int(np.argmax(pictures.histogram_ml["ground_glass"]))
        assert pictures.edges_hu[peak] <= -600 < pictures.edges_hu[peak + 1]

    def test_pictures_survive_their_file(self, pictures: CasePictures, tmp_path: Path) -> None:
        pictures.save(tmp_path / "pictures.json")
        assert CasePictures.load(tmp_path / "pictures.json") == pictures
        assert [p.name for p in tmp_path.iterdir()] == ["pictures.json"]

    @pytest.mark.parametrize(
        "text", ["[]", "{}", "no json", '{"format": 99}', '{"format": 1, "planes": {"a": {}}}']
    )
    def test_what_is_no_picture_file_is_refused_in_words(self, text: str) -> None:
        with pytest.raises(ValueError, match="segment the case again"):
            CasePictures.from_json(text)

    def test_twenty_cases_fit_in_fifteen_megabytes(self) -> None:
        # The worst picture for a codec: noise of 60 HU at full size in every slice.
        noise = np.random.default_rng(0).normal(-700, 60, (30, 300, 300)).astype(np.int16)
        held = case_pictures(noise, np.ones(noise.shape, np.uint8), (10.0, 1.2, 1.2))
        assert max(held.planes["axial"].size_px) == 256
        assert len(held.planes["axial"].ct) == 24
        assert 20 * len(held.to_json()) < 15e6

    def test_a_scan_without_lungs_is_still_shown(self) -> None:
        hu = np.zeros((3, 20, 20), np.int16)
        held = case_pictures(hu, np.zeros(hu.shape, np.uint8), SPACING_MM)
        assert len(held.planes["axial"].ct) == 3
        assert held.histogram_ml == {}

    def test_volumes_that_do_not_belong_together_are_refused(self) -> None:
        hu, labels = chest()
        with pytest.raises(ValueError, match="alike"):
            case_pictures(hu, labels[1:], SPACING_MM)
        with pytest.raises(ValueError, match="spacing_mm"):
            case_pictures(hu, labels, (1.0, 0.0, 1.0))
        with pytest.raises(ValueError, match="label 11"):
            case_pictures(hu, labels + np.uint8(6), SPACING_MM)


class TestPreview:
    def test_disease_is_drawn_in_its_colour_and_the_picture_is_whole(self, tmp_path: Path) -> None:
        hu, labels = chest()
        anatomy = (labels > 0).astype(np.uint8) * Structure.RIGHT_LUNG
        case_preview(tmp_path / "preview.png", hu, labels, anatomy, SPACING_MM, title=HOSTILE)
        with Image.open(tmp_path / "preview.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels.shape[1] == 1200
        red, green, blue = (pixels[..., i] for i in range(3))
        assert np.count_nonzero((red > 150) & (green > 150) & (blue < 120)) > 500  # ground glass is yellow
        assert [p.name for p in tmp_path.iterdir()] == ["preview.png"]

    @pytest.mark.parametrize("shape", [(1, 40, 40), (3, 200, 12), (400, 16, 16)])
    def test_odd_shapes_are_drawn(self, shape: tuple[int, int, int], tmp_path: Path) -> None:
        case_preview(
            tmp_path / "p.png", np.zeros(shape, np.int16), np.ones(shape, np.uint8), None, (1.0, 1.0, 1.0)
        )
        with Image.open(tmp_path / "p.png") as image:
            assert image.width == 1200
            assert image.height < 2500


class TestFlags:
    def test_an_ordinary_case_has_none(self) -> None:
        assert flags(row("a")) == []

    @pytest.mark.parametrize(
        ("odd", "words"),
        [
            ({"lung_ml": 1120.0}, "1,120 ml is under 1,500"),
            ({"lung_ml": 9900.0}, "9,900 ml is over 9,000"),
            ({"right_lung_ml": 300.0}, "right lung is only 12%"),
            ({"mean_lung_hu": -430.0}, "\N{MINUS SIGN}430 HU is over"),
            ({"mean_lung_hu": -990.0}, "\N{MINUS SIGN}990 HU is under"),
            ({"fibrosis_pct": 80.0}, "86% of the lung is called diseased"),
            ({"uncertainty": 0.71}, "uncertainty 0.71"),
            ({"uncertain_pct": 35.0}, "35% of the lung was close to a guess"),
            ({"teacher_distance": 2.4}, "2.4 spreads from the training cohort"),
            ({"air_peak_hu": -700.0, "tissue_peak_hu": 150.0}, "it looks shifted by +50 to +280"),
            ({"air_peak_hu": -300.0, "tissue_peak_hu": 900.0}, "no shift explains both"),
            ({"emphysema_pct": 30.0, "laa950_pct": 0.2}, "30% is called emphysema but only 0.2%"),
        ],
    )
    def test_an_odd_number_is_said_in_words(self, odd: dict[str, float], words: str) -> None:
        found = flags(row("a", **odd))
        assert len(found) == 1
        assert words in found[0]

    def test_what_is_missing_or_failed_is_not_remarked_on(self) -> None:
        assert flags({"case_id": "a", "status": "ok", "lung_ml": float("nan"), "uncertainty": None}) == []
        assert flags(row("a", status="failed", lung_ml=1.0)) == []


class TestPage:
    def test_what_needs_a_look_comes_first_and_nine_before_ten(self, page: Path) -> None:
        soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
        found = [line["data-id"] for line in soup.select("#cases tbody tr")]
        assert found == ["broken", "small", "scout", HOSTILE, "scan-9", "scan-10"]

    def test_reasons_and_flags_stand_in_the_table_in_words(self, page: Path) -> None:
        text = BeautifulSoup(page.read_text("utf-8"), "html.parser").select_one("#cases").get_text(" ")
        assert "3 slices are missing" in text
        assert "lung volume 900 ml" in text
        assert "nan" not in text.lower()

    def test_text_from_a_scan_never_becomes_markup(self, page: Path) -> None:
        html = page.read_text("utf-8")
        soup = BeautifulSoup(html, "html.parser")
        assert soup.title.get_text() == HOSTILE
        assert soup.h1.get_text() == HOSTILE
        scripts = [s for s in soup.find_all("script") if s.get("type") != "application/json"]
        assert len(scripts) == 1
        assert "<script>document" not in html

    def test_nothing_is_fetched_from_anywhere(self, page: Path) -> None:
        html = page.read_text("utf-8")
        soup = BeautifulSoup(html, "html.parser")
        assert not soup.select("link, iframe, script[src]")
        assert all(image["src"].startswith("data:") for image in soup.find_all("img"))
        assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)
        assert "default-src 'none'" in soup.find("meta", attrs={"http-equiv": True})["content"]

    def test_every_check_is_explained(self, page: Path) -> None:
        soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
        assert [term.get_text() for term in soup.select(".checks dt")] == [check.name for check in CHECKS]
        assert "not a medical device" in soup.get_text().lower()

    def test_scores_are_means_over_the_scans_that_have_one(self, tmp_path: Path) -> None:
        def score(case_id: str, method: str, dice: float) -> dict[str, object]:
            return {"case_id": case_id, "method": method, "tissue": "fibrosis", "dice": dice, "hd95_mm": 5.0}

        scores = [score("a", "ours", 0.8), score("b", "ours", 0.6), score("c", "ours", float("nan"))]
        write_report(tmp_path / "r.html", [row("a")], {}, [*scores, score("a", "thresholds", 0.3)])
        soup = BeautifulSoup((tmp_path / "r.html").read_text("utf-8"), "html.parser")
        lines = [line.get_text(" ") for line in soup.select("main .scores tbody tr")]
        assert lines[0].startswith("ours 0.700 0.700 5.0 mm, n 2")
        assert lines[1].startswith("thresholds 0.300")
        assert soup.template.find(class_="scores") is not None

    def test_probabilities_are_drawn_against_the_truth(self, tmp_path: Path) -> None:
        posteriors = np.zeros((6, 1, 10, 10), np.float32)
        posteriors[0], posteriors[1] = 0.2, 0.8
        truth = np.full((1, 10, 10), Tissue.EMPHYSEMA, np.uint8)
        truth[0, :3] = Tissue.HEALTHY
        write_report(tmp_path / "r.html", [row("a")], {}, None, {"ours": calibrations(posteriors, truth)})
        soup = BeautifulSoup((tmp_path / "r.html").read_text("utf-8"), "html.parser")
        figure = soup.select_one(".reliability figure")
        assert "expected calibration error 10.0 %" in figure.get_text(" ")
        told = [title.get_text() for title in figure.select("circle title")]
        assert told[0] == "all of the lung: called with 0.80, right 0.70; 100.0 % of voxels"

    def test_large_cohorts_keep_their_pictures_beside_the_page(
        self, pictures: CasePictures, tmp_path: Path
    ) -> None:
        home = tmp_path / "cases" / "a b#1"
        pictures.save(home / "pictures.json")
        write_report(tmp_path / "r.html", [row("a b#1")], {"a b#1": home / "pictures.json"}, embed=False)
        soup = BeautifulSoup((tmp_path / "r.html").read_text("utf-8"), "html.parser")
        script = tmp_path / unquote(soup.template["data-url"])
        found = re.fullmatch(r"diffseglungPictures\((.*)\);\n", script.read_text("ascii"))
        assert found is not None
        assert CasePictures.from_json(found[1]) == pictures
        assert soup.find(id="pictures-0") is None
        thumbnail = tmp_path / unquote(soup.select_one(".thumb img")["src"])
        assert base64.b64encode(thumbnail.read_bytes()).decode() == pictures.thumbnail

    def test_lost_pictures_cost_the_pictures_only(self, tmp_path: Path) -> None:
        write_report(tmp_path / "r.html", [row("a")], {"a": tmp_path / "nowhere.json"})
        assert "no-picture" in (tmp_path / "r.html").read_text("utf-8")

    def test_an_empty_cohort_and_names_that_are_no_unicode_are_written(self, tmp_path: Path) -> None:
        write_report(tmp_path / "none.html", [], {})
        assert "No scan was found" in (tmp_path / "none.html").read_text("utf-8")
        write_report(tmp_path / "odd.html", [row("a\udcff")], {})
        assert r"a\udcff" in (tmp_path / "odd.html").read_text("utf-8")

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_text_stands_out_from_its_ground(self, page: Path, theme: str) -> None:
        blocks = re.findall(r":root \{(.*?)\}", page.read_text("utf-8"), re.DOTALL)
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[theme == "dark"]))
        pairs = [(ink, ground) for ink in ("ink", "muted") for ground in ("back", "card", "sunk")]
        pairs += [
            ("accent", "card"),
            ("accent", "accent-soft"),
            ("on-accent", "accent"),
            ("ink", "accent-soft"),
        ]
        pairs += [(state, f"{state}-soft") for state in ("failed", "flagged", "ok", "skipped")]
        for ink, ground in pairs:
            # 4.5 to 1: WCAG 2.2, level AA, text of normal size.
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(first: str, second: str) -> float:
    """The WCAG contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def large(pictures: CasePictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand scans, some flagged and some failed; a few have pictures, in files beside the page."""
    folder = tmp_path_factory.mktemp("large")
    odd = [{"lung_ml": 900.0}, {"teacher_distance": 2.4}, {"air_peak_hu": -700.0, "tissue_peak_hu": 150.0}]
    rows = [
        row(f"scan-{n}", fibrosis_pct=n / 20, **(odd[n // 25 % 3] if n % 25 == 7 else {})) for n in range(980)
    ]
    rows += [{"case_id": f"lost-{n}", "status": "failed", "reason": "slices are missing"} for n in range(20)]
    shown = {}
    for number in (0, 7, 10, 979):
        shown[f"scan-{number}"] = folder / "cases" / f"scan-{number}" / "pictures.json"
        pictures.save(shown[f"scan-{number}"])
    write_report(folder / "report.html", rows, shown, embed=False)
    return folder / "report.html"


def first_rows(browsed: Page, count: int = 3) -> list[str]:
    return browsed.js(
        "[...document.querySelectorAll('#cases tbody tr')].filter(r => !r.hidden)"
        f".slice(0, {count}).map(r => r.dataset.id)"
    )


@pytest.fixture(scope="module")
def browsed() -> Iterator[Page]:
    with browser() as found:
        yield found


@pytest.fixture
def at_large(browsed: Page, large: Path) -> Iterator[Page]:
    """The page of a thousand scans; whatever a test does there, it has nothing to complain of."""
    browsed.complaints.clear()
    browsed.open("about:blank")
    browsed.open(large.as_uri())
    yield browsed
    assert browsed.complaints == []
    assert browsed.js("document.documentElement.dataset.error ?? ''") == ""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to run the page's script in")
class TestInABrowser:
    def test_a_hostile_name_opens_with_its_slices_and_histogram(self, browsed: Page, page: Path) -> None:
        browsed.open(f"{page.as_uri()}#case=scan-10")
        browsed.until("/^slice \\d+ of 40$/.test(document.getElementById('where').textContent)")
        assert browsed.js("document.title") == HOSTILE
        told = browsed.js("document.getElementById('slice').getAttribute('aria-label')")
        assert "ground glass" in told or "consolidation" in told
        assert browsed.js("document.querySelectorAll('#case .histogram path').length") == 3
        browsed.open(page.as_uri())
        rows = "[...document.querySelectorAll('#cases tbody tr')]"
        browsed.js(f"{rows}.find(r => r.dataset.id.includes('taken')).querySelector('.open').click()")
        browsed.until("document.getElementById('case').open")
        assert browsed.js("document.getElementById('case-title').textContent") == HOSTILE
        assert browsed.complaints == []

    def test_a_thousand_scans_load_sort_and_filter(self, at_large: Page) -> None:
        assert at_large.js("document.querySelectorAll('#cases tbody tr').length") == 1000
        assert first_rows(at_large) == ["lost-0", "lost-1", "lost-2"]
        at_large.click("th.share button")
        assert first_rows(at_large) == ["scan-979", "scan-978", "scan-977"]
        assert at_large.js("document.querySelector('th.share').getAttribute('aria-sort')") == "descending"
        at_large.click("th.share button")
        assert first_rows(at_large, 1) == ["scan-0"]
        at_large.click("th.text button")
        assert first_rows(at_large, 1) == ["lost-0"]
        at_large.click(".chip[data-state=flagged]")
        assert at_large.js("document.getElementById('count').textContent") == "39 of 1000 shown"
        at_large.js("document.getElementById('filter').focus()")
        at_large.write("calibration")
        assert at_large.js("document.getElementById('count').textContent") == "13 of 1000 shown"
        at_large.write(" nowhere")
        assert at_large.js("document.getElementById('nothing').hidden") is False

    def test_a_flag_leads_to_the_scans_that_have_it(self, at_large: Page) -> None:
        chips = "[...document.querySelectorAll('.flags .chip')].map(c => c.textContent)"
        assert sorted(at_large.js(chips)) == ["Calibration13", "Lung volume13", "Unlike the training13"]
        at_large.click(".flags .chip[data-words='unlike the training']")
        assert at_large.js("document.getElementById('count').textContent") == "13 of 1000 shown"
        assert at_large.js("document.querySelector('.flags [aria-pressed=true]').textContent").startswith(
            "Unlike"
        )
        at_large.click(".flags .chip[data-words='unlike the training']")
        assert at_large.js("document.getElementById('count').textContent") == ""

    def test_pictures_come_from_beside_the_page_when_they_are_wanted(self, at_large: Page) -> None:
        scripts = (
            "performance.getEntriesByType('resource').filter(r => r.name.endsWith('pictures.js')).length"
        )
        assert at_large.js(scripts) == 0
        at_large.js("document.querySelector('tr[data-id=scan-979] img').scrollIntoView()")
        at_large.until("document.querySelector('tr[data-id=scan-979] img').naturalWidth > 0")
        at_large.js("location.hash = 'case=scan-979'")
        at_large.until("document.getElementById('where').textContent.endsWith('of 40')")
        assert at_large.js("document.getElementById('viewer').hidden") is False

    def test_the_sliders_move_by_key_and_change_the_picture(self, at_large: Page) -> None:
        at_large.js("location.hash = 'case=scan-0'")
        at_large.until("document.getElementById('where').textContent.endsWith('of 40')")
        assert at_large.js("document.activeElement.id") == "position"
        drawn = "document.getElementById('slice').toDataURL()"
        # It opens on the slice with most disease; the first slice has none, and at full strength labels hide the CT.
        for slider, steps in {
            "opacity": (("End", "100"), ("ArrowLeft", "95"), ("Home", "0")),
            "position": (("Home", "0"), ("ArrowRight", "1"), ("End", "23")),
        }.items():
            at_large.js(f"window.before = {drawn}; document.getElementById('{slider}').focus()")
            for number, (key, value) in enumerate(steps):
                at_large.press(key)
                at_large.until(f"document.getElementById('{slider}').value === '{value}'")
                if number == 0:
                    at_large.until(f"{drawn} !== window.before")
            if slider == "opacity":
                at_large.js(f"window.before = {drawn}")
                at_large.press("End")
                at_large.until(f"{drawn} !== window.before")

    def test_the_whole_page_works_without_a_mouse(self, at_large: Page) -> None:
        at_large.press("Tab")
        assert at_large.js("document.activeElement.className") == "skip"
        at_large.js("document.querySelector('#cases tbody .open').focus()")
        at_large.press("ArrowDown")
        assert at_large.js("document.activeElement.closest('tr').dataset.id") == "lost-1"
        at_large.press("Enter")
        at_large.until("document.getElementById('case').open")
        assert at_large.js("document.getElementById('case-title').textContent") == "lost-1"
        assert at_large.js("document.getElementById('case').contains(document.activeElement)")
        at_large.press("Escape")
        at_large.until("!document.getElementById('case').open")
        assert at_large.js("document.activeElement.closest('tr').dataset.id") == "lost-1"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        at_large.press("ArrowUp")
        assert at_large.js(outline) != "none"

    def test_every_control_has_a_name(self, at_large: Page) -> None:
        at_large.js("location.hash = 'case=scan-0'")
        at_large.until("document.getElementById('where').textContent.endsWith('of 40')")
        nodes = at_large.call("Accessibility.getFullAXTree")["nodes"]
        controls = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if node.get("role", {}).get("value")
            in ("button", "slider", "checkbox", "searchbox", "link", "dialog")
        ]
        assert ("slider", "Slice") in controls
        assert [control for control in controls if not control[1].strip()] == []
