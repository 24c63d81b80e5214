"""Paths below a home folder, and what is told where there is none."""

import os
import pwd
from pathlib import Path

import pytest

from common import clip, vit
from common.errors import UserError
from common.files import home_path


@pytest.fixture
def homeless(monkeypatch):
    """A process of a user without HOME and without an entry in the list of users."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_home_path(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert home_path("~/weights") == Path("/somewhere/weights")
    assert home_path("weights/~a") == Path("weights/~a")


def test_without_a_home(homeless, tmp_path):
    for find in (lambda: clip.pretrained.find_weights("ViT-B/16"), lambda: clip.load("RN50")):
        with pytest.raises(UserError, match="^~/.cache/clip: this user has no home folder. Set HOME to a folder"):
            find()
    with pytest.raises(UserError, match="Set HOME"):
        vit.find_weights("~/vit.pth")
    with pytest.raises(UserError, match="Set HOME"):
        vit.find_weights("~nobody-of-this-name/vit.pth")
    assert not os.path.exists("~")


def test_other_users_home_that_is_unknown():
    with pytest.raises(UserError, match="~nobody-of-this-name/clip.pt: this user has no home folder"):
        clip.load("~nobody-of-this-name/clip.pt")
