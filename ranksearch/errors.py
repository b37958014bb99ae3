"""The errors and warnings that ranksearch raises on purpose: each names the argument, the value got and the remedy."""

from __future__ import annotations


class RanksearchError(Exception):
    """Base of every deliberate error; the command line prints it without a traceback and exits with 2."""


class RanksearchWarning(UserWarning):
    """Something that was asked for has no effect, or data look as if they mislead; the command line prints it as one line."""


class InvalidArgument(RanksearchError, ValueError):
    """An argument has a value that cannot be used."""


class InvalidModel(RanksearchError, ValueError):
    """A model, its weights or its example input cannot be worked on (NaN weights, misfitting weights, ...)."""


class EmptySpace(RanksearchError, ValueError):
    """A search space has nothing to choose: no site, or no option besides dense."""


class InfeasibleBudget(RanksearchError, ValueError):
    """No configuration satisfies a budget; the message names the smallest feasible value."""


class DenseFailed(RanksearchError):
    """The dense network cannot be evaluated, so that no other network can be compared with it; the message says why it failed."""


class FailedInARow(RanksearchError):
    """So many evaluations failed one after the other that it is no fault of theirs; the message has the last reason."""


class ClusterLost(RanksearchError):
    """The head of a Ray cluster, or Ray's process on this machine, is gone. What was finished is stored, and the same run goes on."""


class StoreError(RanksearchError):
    """A store cannot be opened, read or written, or belongs to something else."""


class StoreUnreachable(StoreError):
    """A server of a store does not answer at the moment."""


class StudyFileError(RanksearchError):
    """A study file cannot be found, imported, or does not declare a study."""


class MissingDependency(RanksearchError, ImportError):
    """An optional package is needed for what was asked; the message says how to install it."""
