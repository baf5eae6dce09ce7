# Owns: that replacing a library's functions finds every name bound to them, tells what it replaced, and puts all of it
# back.
# Must not know: any library: one is made up here. tests/integrations has the real ones.
from __future__ import annotations

import pickle
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from focal_ext.compat import _patching
from focal_ext.compat._patching import Switch, with_original

LIBRARY = {
    "rivers": "",
    "rivers.loss": "def focal(x, gamma=2): return ('rivers', x, gamma)\ndef other(x): return ('rivers', x)",
    "rivers.criterion": """
from rivers.loss import focal
from rivers.loss import focal as renamed
LOSSES = {'focal': focal}
class Criterion:
    static = staticmethod(focal)
    def loss(self, x): return ('rivers', x)
class Derived(Criterion):
    also = Criterion.loss
""",
}
NAMES = [
    "rivers.criterion.Criterion.loss",
    "rivers.criterion.Criterion.static",
    "rivers.criterion.Derived.also",
    "rivers.criterion.LOSSES['focal']",
    "rivers.criterion.focal",
    "rivers.criterion.renamed",
    "rivers.loss.focal",
    "train.focal",
]


def fused(x: Any, gamma: float = 2) -> Any:
    return "fused", x, gamma


def fused_method(self: Any, x: Any) -> Any:
    return "fused", x


def module(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = []
    monkeypatch.setitem(sys.modules, name, made)
    exec(source, vars(made))
    return made


@pytest.fixture
def rivers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name, source in LIBRARY.items():
        module(name, source, monkeypatch)
    module("train", "from rivers.loss import focal", monkeypatch)  # of the user
    return sys.modules["rivers.criterion"]


def switch(version: str | None = "1.2.0", monkeypatch: pytest.MonkeyPatch | None = None, **places: Any) -> Switch:
    made = Switch(
        "rivers",
        known="1.2.0",
        places={"rivers.loss:focal": fused, "rivers.criterion:Criterion.loss": fused_method, **places},
    )
    made._version = lambda: version
    return made


def answers(criterion: ModuleType) -> list[str]:
    """Who answers under every name there is."""
    kinds = criterion.Criterion(), criterion.Derived()
    found = [
        criterion.focal(1),
        criterion.renamed(1),
        criterion.LOSSES["focal"](1),
        criterion.Criterion.static(1),
        sys.modules["rivers.loss"].focal(1),
    ]
    return [
        who for who, *_ in (*found, *(kind.loss(1) for kind in kinds), kinds[1].also(1), sys.modules["train"].focal(1))
    ]


def test_every_name_is_replaced_listed_and_put_back(rivers: ModuleType) -> None:
    one = switch()
    with one.patched() as names:
        assert set(answers(rivers)) == {"fused"} and list(names) == NAMES and str(names) == "\n".join(NAMES)
    assert set(answers(rivers)) == {"rivers"}
    assert one.apply() == one.apply() == tuple(NAMES) and set(answers(rivers)) == {"fused"}
    assert one.restore() == tuple(NAMES) and set(answers(rivers)) == {"rivers"} and one.restore() == ()


def test_what_is_imported_while_it_is_replaced_is_replaced_and_put_back(
    rivers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with switch().patched():
        later = module(
            "rivers.later", "from rivers.loss import focal\nclass Later:\n    static = staticmethod(focal)", monkeypatch
        )
        assert later.focal(1)[0] == later.Later.static(1)[0] == "fused"
    assert later.focal(1)[0] == later.Later.static(1)[0] == "rivers"


def test_the_context_may_be_nested_and_does_not_end_what_was_applied(rivers: ModuleType) -> None:
    one = switch()
    with one.patched(), one.patched():
        pass
    assert answers(rivers)[0] == "rivers"
    with one.patched():
        with one.patched():
            pass
        assert answers(rivers)[0] == "fused"
    one.apply()
    with pytest.raises(KeyError), one.patched():
        raise KeyError
    assert answers(rivers)[0] == "fused"
    with one.patched():
        one.restore()
    assert answers(rivers)[0] == "rivers"


def test_what_another_has_replaced_since_is_left_alone(rivers: ModuleType) -> None:
    one = switch()
    one.apply()
    rivers.focal = abs
    one.restore()
    assert rivers.focal is abs and rivers.renamed(1)[0] == "rivers"


def test_the_same_function_imported_from_focal_ext_is_not_put_back(
    rivers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = module("mine", "", monkeypatch)
    mine.focal = fused
    with switch().patched():
        pass
    assert mine.focal is fused


def test_a_replacement_may_leave_a_call_to_what_it_replaced(rivers: ModuleType) -> None:
    @with_original
    def only_two(original: Any, x: Any, gamma: float = 2) -> Any:
        return fused(x) if gamma == 2 else original(x, gamma)

    with switch(**{"rivers.loss:focal": only_two}).patched():
        assert rivers.focal(1) == ("fused", 1, 2) and rivers.focal(1, gamma=3) == ("rivers", 1, 3)


def test_what_was_put_in_pickles_by_the_librarys_name(rivers: ModuleType) -> None:
    with switch().patched():
        pickled = pickle.dumps(rivers.focal)
    assert pickle.loads(pickled) is rivers.focal and rivers.focal(1)[0] == "rivers"


WRONG = {
    "a module gone": (
        {"rivers.gone:focal": fused},
        "2.0.0",
        r"knows version 1.2.0 and here is 2.0.0: rivers.gone is missing. Install rivers==1.2.0",
    ),
    "a module gone, of the version that was tried": ({"rivers.gone:focal": fused}, "1.2.0", "rivers.gone is missing"),
    "a module gone, of no version": ({"rivers.gone:focal": fused}, None, "here is an unknown one"),
    "a name gone": ({"rivers.loss:gone": fused}, "1.1.0", "rivers.loss has no gone"),
    "a method gone": ({"rivers.criterion:Criterion.gone": fused}, "2.0.0", "rivers.criterion has no Criterion.gone"),
    "other arguments": ({"rivers.loss:other": fused}, "2.0.0", "rivers.loss.other takes x, not x, gamma"),
    "a class": ({"rivers.criterion:Criterion": fused}, "2.0.0", "rivers.criterion.Criterion is not a function"),
}


@pytest.mark.parametrize("name", WRONG)
def test_where_a_place_is_not_as_it_was_nothing_is_replaced_and_the_known_version_named(
    rivers: ModuleType, name: str
) -> None:
    places, version, sentence = WRONG[name]
    with pytest.raises(RuntimeError, match=sentence):
        switch(version, **places).apply()
    assert set(answers(rivers)) == {"rivers"}


def test_a_module_that_an_older_version_does_not_have_yet_is_passed_over(rivers: ModuleType) -> None:
    with switch("1.1.9", **{"rivers.gone:focal": fused}).patched() as names:
        assert list(names) == NAMES
    nothing = Switch("rivers", known="1.2.0", places={"rivers.gone:focal": fused})
    nothing._version = lambda: "1.1.9"
    with pytest.raises(RuntimeError, match="none of its losses is there"):
        nothing.apply()


def test_a_library_that_is_not_installed_is_pythons_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_rivers'"):
        Switch("no_such_rivers", known="1", places={"no_such_rivers.loss:focal": fused}).apply()


def test_threads_that_enter_and_leave_at_the_same_time_leave_nothing_behind(rivers: ModuleType) -> None:
    one, wrong = switch(), []

    def work() -> None:
        for _ in range(20):
            with one.patched():
                if rivers.focal(1)[0] != "fused":
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and set(answers(rivers)) == {"rivers"}


def test_classes_of_ours_are_not_searched(rivers: ModuleType) -> None:
    assert not any(
        binding.label.startswith("focal_ext")
        for binding, _ in _patching.bindings_of([fused, _patching.bindings_of], ["focal_ext"])
    )
