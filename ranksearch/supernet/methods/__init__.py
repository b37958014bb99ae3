"""The training methods, one file each. ``METHODS`` is the only list of them."""

from __future__ import annotations

from ranksearch.supernet.methods._base import LossModule, Method, projecting
from ranksearch.supernet.methods.distortion import Distortion
from ranksearch.supernet.methods.joint import Joint
from ranksearch.supernet.methods.plain import Plain
from ranksearch.supernet.methods.regularized import Regularized, sized
from ranksearch.supernet.methods.sandwich import Sandwich
from ranksearch.supernet.methods.trp import TRP

METHODS: dict[str, type[Method]] = {method.name: method for method in (Plain, Joint, Sandwich, TRP, Distortion, Regularized)}

__all__ = ["METHODS", "TRP", "Distortion", "Joint", "LossModule", "Method", "Plain", "Regularized", "Sandwich", "projecting", "sized"]
