"""Errors pickle with code and remedy; ids, paths and engine names are checked."""

import pickle

import pytest

from models import errors
from models.errors import ConfigError, IdError, TextError, WarmTalkError
from models.runtime.ids import check_id, path_under
from models.runtime.registry import find_engine

ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, WarmTalkError)]


@pytest.mark.parametrize("kind", ALL)
def test_an_error_pickles_with_its_remedy(kind):
    error = pickle.loads(pickle.dumps(kind("What happened.", "What to do.")))
    assert (type(error), error.message, error.remedy) == (kind, "What happened.", "What to do.")
    assert error.to_dict() == {"code": kind.code, "message": "What happened.", "remedy": "What to do."}


def test_codes_are_unique():
    assert len({kind.code for kind in ALL}) == len(ALL)


def test_input_errors_have_status_422():
    assert TextError.status == IdError.status == 422


@pytest.mark.parametrize("value", ["", "..", "a/b", "A", "a" * 65, "a.b", "ä", "a\n", "-\0"])
def test_an_id_with_other_characters_is_refused(value):
    with pytest.raises(IdError):
        check_id(value)


def test_an_id_becomes_a_path_under_its_root(tmp_path):
    assert path_under(tmp_path, "alice_2-b") == tmp_path / "alice_2-b"


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(IdError, match="outside"):
        path_under(tmp_path / "root", "link")


def test_an_unknown_engine_names_the_known_ones():
    with pytest.raises(ConfigError, match="no engine 'hibarri'.*Use one of hibari, or 'module:Class'"):
        find_engine("hibarri", {"hibari": "models.tts.hibari:HibariTTS"})


def test_an_engine_can_be_named_by_module_and_class():
    assert find_engine("models.errors:TextError", {}) is TextError


def test_an_engine_that_cannot_be_imported_says_why():
    with pytest.raises(ConfigError, match="cannot be imported"):
        find_engine("models.nowhere:Engine", {})
