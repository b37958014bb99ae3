"""Loggers of other packages are quiet for a while."""

from __future__ import annotations

import logging

import pytest

from ranksearch.logs import quiet


def test_a_logger_is_quiet_within_and_as_it_was_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ranksearch.tests.quiet")
    logger.setLevel(logging.INFO)
    with pytest.raises(RuntimeError, match="within"), quiet(logger.name, logging.ERROR):
        logger.warning("held back")
        logger.error("said")
        raise RuntimeError("within")
    with quiet(logger.name):
        logger.error("held back")
    logger.info("said again")
    assert [record.message for record in caplog.records] == ["said", "said again"] and logger.level == logging.INFO
