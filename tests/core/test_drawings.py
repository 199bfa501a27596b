"""Schedules as pictures: what is drawn, where, and how large."""

import itertools
import math
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpolicy import Decision, MissingExtraError, Schedule, simulate
from magpolicy.schedule._plot import plot_comparison, plot_plan

RATIOS = [1.0, 1.21, 1.12, 1.08, 1.06, 1.04, 1.03, 1.04, 1.02, 1.03, 1.02, 0.98, 1.02, 1.01]
SETTINGS = {"threshold": 0.24, "max_skips": 3, "retention": 0.1}

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1, max_size=12)
schedules = st.sampled_from([1, 2, 10, 56, 57, 100, 460]).flatmap(
    lambda steps: st.dictionaries(names, st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=1, max_size=4)
).map(lambda rows: Schedule.from_mask({name: [True, *row[1:]] for name, row in rows.items()}))  # fmt: skip


def drawn(schedule):
    """The picture of a notebook, and its boxes in rows: x, y, width, height and what is said of it."""
    html = ElementTree.fromstring(schedule._repr_html_().replace("<br>", "<br/>"))
    [svg] = html.iter("svg")
    rows = {}
    for box in svg.iter("rect"):
        x, y, width, height = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        rows.setdefault(y, []).append((x, width, height, box.get("fill"), box.find("title").text))
    return html, svg, rows


@given(schedules)
def test_boxes_stand_side_by_side_inside_the_picture(schedule):
    _, svg, rows = drawn(schedule)
    left, top, width, height = map(float, svg.get("viewBox").split())
    assert (left, top, width, height) == (0, 0, float(svg.get("width")), float(svg.get("height")))
    assert len(rows) == len(schedule.streams)
    assert all(top <= y and y + box[2] <= height for y, row in rows.items() for box in row)
    assert all(lower - upper > 16 for upper, lower in itertools.pairwise(sorted(rows)))
    for row, mask in zip(rows.values(), schedule.masks, strict=True):
        assert [box[0] for box in row] == sorted(box[0] for box in row)
        assert row[0][0] == 0
        assert all(x + wide < after for (x, wide, *_), (after, *_) in itertools.pairwise(row))
        assert row[-1][0] + row[-1][1] <= width
        fills = [box[3] for box in row]
        assert {fill for fill, computes in zip(fills, mask, strict=True) if computes}.isdisjoint(
            {fill for fill, computes in zip(fills, mask, strict=True) if not computes}
        )
    texts = list(svg.iter("text"))
    assert [text.text for text in texts] == (list(schedule.streams) if len(schedule.streams) > 1 else [])
    longest = max(map(len, schedule.streams))
    assert all(float(text.get("x")) + 8 * longest <= width for text in texts), "names have room"


@pytest.mark.parametrize(
    ("steps", "side", "width"), [(1, 16, 13), (30, 16, 13), (56, 16, 13), (60, 15, 12), (100, 9, 6), (450, 2, 1), (900, 2, 1)]
)
def test_boxes_are_as_large_as_a_page_allows_and_never_too_small_to_see(steps, side, width):
    _, svg, rows = drawn(Schedule.from_mask([1] * steps))
    assert [box[:3] for box in rows[0]] == [(side * place, width, 16) for place in range(steps)]
    assert svg.get("viewBox") == f"0 0 {side * steps} 19"


def test_the_picture_of_two_streams():
    _, svg, rows = drawn(Schedule.from_mask({"cond": [1, 0], "uncond": [1, 1]}))
    assert svg.get("viewBox") == f"0 0 {2 * 16 + 8 + 6 * 8} 38"
    assert list(rows) == [0, 19]
    assert [(text.get("x"), text.get("y"), text.text) for text in svg.iter("text")] == [
        ("40", "12", "cond"),
        ("40", "31", "uncond"),
    ]


def test_a_box_says_what_was_decided_and_why():
    computed, skipped = (Decision.SCHEDULED, 0.0), (Decision.REUSED, 0.123)
    one = Schedule.from_decisions({"single": [computed, skipped]}, first_step=7, sigmas=[0.98765, 0.5])
    html, svg, rows = drawn(one)
    assert [box[4] for box in rows[0]] == [
        "step 7, noise level 0.988: scheduled",
        "step 8, noise level 0.5: reused, error 0.12",
    ]
    assert svg.get("aria-label") == "1 of 2 steps compute"
    assert html.text == "2 steps, 1 computed, 2.00x"
    two = Schedule.from_decisions({"a & b": [computed, skipped], "<c>": [computed, computed]})
    _, _, rows = drawn(two)
    assert [[box[4] for box in row] for row in rows.values()] == [
        ["step 0, a & b: scheduled", "step 1, a & b: reused, error 0.12"],
        ["step 0, <c>: scheduled", "step 1, <c>: scheduled"],
    ]


@pytest.fixture
def figures(monkeypatch):
    """What is saved while a test runs, by file."""
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    from matplotlib.figure import Figure

    saved, save = {}, Figure.savefig

    def savefig(figure, path, **settings):
        save(figure, path, **settings)
        saved[path] = figure

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def lines(axes):
    return [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def heights(axes):
    return list(axes.get_subplotspec().get_gridspec().get_height_ratios())


def dark(axes):
    """The rows of a strip, true where it is dark, and where they lie."""
    [image] = axes.images
    return [[not value for value in row] for row in image.get_array().tolist()], image.get_extent()


@pytest.mark.parametrize("part", [(0, 14), (3, 9)])
@pytest.mark.parametrize("source", [RATIOS, {"cond": RATIOS, "uncond": RATIOS[::-1]}], ids=["one", "two"])
def test_a_schedule_is_drawn_as_it_is(tmp_path, figures, source, part):
    schedule = simulate(source, part=part, **SETTINGS)
    file = tmp_path / "schedule.png"
    schedule.plot(file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    errors, strip = figures[file].axes
    steps = list(range(*part))
    assert lines(errors) == [(name, steps, list(schedule.stream_errors(name))) for name in schedule.streams]
    assert errors.get_title() == f"{schedule.computed} of {schedule.steps} steps computed, {schedule.speedup:.2f}x"
    assert errors.get_ylabel() == "accumulated error"
    assert (errors.get_legend() is not None) == (len(schedule.streams) > 1)
    assert heights(errors) == [3, 0.6 * len(schedule.streams)]
    bottom = len(schedule.streams) - 0.5
    assert dark(strip) == ([list(mask) for mask in schedule.masks], [part[0] - 0.5, part[1] - 0.5, bottom, -0.5])
    assert strip.get_xlim() == errors.get_xlim() == (part[0] - 0.5, part[1] - 0.5)
    assert [text.get_text() for text in strip.get_yticklabels()] == list(schedule.streams)
    assert list(strip.get_yticks()) == list(range(len(schedule.streams)))


def test_what_computes_is_dark_and_what_skips_is_light_and_both_are_seen_on_any_paper(tmp_path, figures):
    Schedule.from_mask([1, 0]).plot(tmp_path / "schedule.png")
    [image] = figures[tmp_path / "schedule.png"].axes[1].images
    dark, light = (image.cmap(image.norm(value))[0] for value in image.get_array()[0])  # of three alike; 0 is black, 1 is white
    assert 0.15 < dark < 0.35
    assert 0.8 < light < 0.95


@pytest.mark.parametrize(("steps", "width"), [(10, 5.0), (27, 5.0), (50, 9.0), (100, 18.0)])
@pytest.mark.parametrize("streams", [["single"], ["cond", "uncond"]], ids=len)
def test_a_figure_grows_with_steps_and_streams(tmp_path, figures, steps, width, streams):
    schedule = Schedule.from_mask({name: [1] * steps for name in streams})
    schedule.plot(tmp_path / "one.png")
    [figure] = figures.values()
    assert list(figure.get_size_inches()) == pytest.approx([width, 1.8 + 0.5 * len(streams)])


def a_plan(mask, error):
    """With a check at every step that computes, as plans have them."""
    errors = [0.0 if computes else error for computes in mask]
    return Schedule.from_mask(mask, errors=errors, checks={"single": [((), 0.1) if computes else None for computes in mask]})


def test_a_plan_is_drawn_beside_what_speed_costs(tmp_path, figures):
    plan = a_plan([1, 0, 1, 0], 0.1)
    others = [a_plan([1, 1, 1, 1], 0.0), a_plan([1, 1, 1, 0], 0.05), a_plan([1, 0, 0, 0], 0.4)]
    plot_plan(plan, others, tmp_path / "plan.png")
    [figure] = figures.values()
    assert list(figure.get_size_inches()) == pytest.approx([5 + 3.2, 2.2 + 0.5])
    errors, strip, trade = figure.axes
    assert errors.get_ylabel() == "expected relative error"
    assert dark(strip)[0] == [[True, False, True, False]]
    curve, point = trade.lines
    assert list(curve.get_xdata()) == [others[1].speedup, others[2].speedup], "a plan that computes everything has no price"
    assert list(curve.get_ydata()) == [others[1].rms_error, others[2].rms_error]
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([plan.speedup], [plan.rms_error])
    assert trade.get_yscale() == "log"


@pytest.mark.parametrize(("steps", "width"), [(10, 5.0), (100, 18.0)])
def test_the_plan_has_the_room_that_its_steps_need(tmp_path, figures, steps, width):
    plot_plan(a_plan([1, *[0] * (steps - 1)], 0.1), [], tmp_path / "plan.png")
    [figure] = figures.values()
    left, right = figure.subfigs
    assert left.bbox.width / right.bbox.width == pytest.approx(width / 3.2)
    errors, strip = left.axes
    assert heights(errors) == [3, 0.6]
    assert errors.get_xlim() == strip.get_xlim() == (-0.5, steps - 0.5)


@pytest.mark.parametrize("others", [[], [a_plan([1, 1, 1, 0], 0.0)]], ids=["none", "one without an error"])
def test_what_has_no_logarithm_is_drawn_without(tmp_path, figures, others):
    plot_plan(a_plan([1, 0, 1, 0], 0.1), others, tmp_path / "plan.png")
    [figure] = figures.values()
    assert figure.axes[2].get_yscale() == "linear"


def test_two_schedules_are_compared_in_one_diagram_above_their_strips(tmp_path, figures):
    fast, slow = Schedule.from_mask([1, 0, 0, 0]), Schedule.from_mask([1, 1, 1, 0])
    plot_comparison({"fast": (fast, [0, 0.1, 0.2, math.inf]), "slow": (slow, [0, 0, 0, 0.1])}, tmp_path / "both.png")
    [figure] = figures.values()
    assert list(figure.get_size_inches()) == pytest.approx([5, 3.2])
    errors, *strips = figure.axes
    (fast_name, steps, curve), slow_line = lines(errors)
    assert (fast_name, steps, curve[:3]) == ("fast: 1 computed, 4.00x", [0, 1, 2, 3], [0, 0.1, 0.2])
    assert math.isnan(curve[3]), "an error that is not known is not drawn"
    assert slow_line == ("slow: 3 computed, 1.33x", [0, 1, 2, 3], [0, 0, 0, 0.1])
    assert heights(errors) == [3, 0.6, 0.6]
    assert {axes.get_xlim() for axes in figure.axes} == {(-0.5, 3.5)}
    assert [dark(strip) for strip in strips] == [
        ([[True, False, False, False]], [-0.5, 3.5, 0.5, -0.5]),
        ([[True, True, True, False]], [-0.5, 3.5, 0.5, -0.5]),
    ]
    assert [[text.get_text() for text in strip.get_yticklabels()] for strip in strips] == [["fast"], ["slow"]]


def test_plot_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"magpolicy\[plot\]"):
        simulate(RATIOS, **SETTINGS).plot(tmp_path / "schedule.png")
    assert list(tmp_path.iterdir()) == []
