"""Training methods, one file each. ``METHODS`` is the list that ``train``, ``compare`` and ``--help`` read."""

from __future__ import annotations

from igm_fast.methods.base import Batch, Context, Method, Stage, alternating, together
from igm_fast.methods.igm import Igm
from igm_fast.methods.igm_no_sam import IgmNoSam
from igm_fast.methods.joint import Joint
from igm_fast.methods.late import Late
from igm_fast.methods.mla import Mla
from igm_fast.methods.unimodal import Unimodal

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Unimodal, Late, Joint, Mla, IgmNoSam, Igm)}

__all__ = ["METHODS", "Batch", "Context", "Method", "Stage", "alternating", "together"]
