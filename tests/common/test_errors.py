"""Several mistakes, told at once."""

import pytest

from common.errors import UserError, all_checked


def fails(message: str) -> None:
    raise UserError(message)


def test_results_of_all_checks() -> None:
    assert all_checked([lambda: 1, lambda: None, lambda: "three"]) == [1, None, "three"]


def test_all_problems_in_one_message() -> None:
    with pytest.raises(UserError) as caught:
        all_checked([lambda: fails("no data."), lambda: 1, lambda: fails("no weights.")])
    assert str(caught.value) == "no data.\nno weights."


def test_an_error_that_is_no_user_s_is_not_held_back() -> None:
    with pytest.raises(ZeroDivisionError):
        all_checked([lambda: fails("no data."), lambda: 1 / 0])
