"""Training methods, one file each. ``METHODS`` is the list that ``train``, ``compare`` and ``--help`` read."""

from __future__ import annotations

from igm_fast.methods.agm import Agm
from igm_fast.methods.base import Batch, Context, Method, Stage, alternating, together
from igm_fast.methods.domfn import Domfn
from igm_fast.methods.igm import Igm
from igm_fast.methods.igm_no_sam import IgmNoSam
from igm_fast.methods.joint import Joint
from igm_fast.methods.late import Late
from igm_fast.methods.mla import Mla
from igm_fast.methods.mmpareto import MmPareto
from igm_fast.methods.mses import Mses
from igm_fast.methods.mslr import Mslr
from igm_fast.methods.ogm import Ogm
from igm_fast.methods.ogm_ge import OgmGe
from igm_fast.methods.ogr_gb import OgrGb
from igm_fast.methods.pmr import Pmr
from igm_fast.methods.reconboost import ReconBoost
from igm_fast.methods.sam import Sam
from igm_fast.methods.smv import Smv
from igm_fast.methods.unimodal import Unimodal

_TABLE: tuple[type[Method], ...] = (  # in the order of the paper's table
    Unimodal,
    Joint,
    Late,
    OgrGb,
    Ogm,
    OgmGe,
    Domfn,
    Mses,
    Pmr,
    Agm,
    Mslr,
    ReconBoost,
    Smv,
    MmPareto,
    Mla,
    Sam,
    IgmNoSam,
    Igm,
)
METHODS: dict[str, type[Method]] = {cls.name: cls for cls in _TABLE}

__all__ = ["METHODS", "Batch", "Context", "Method", "Stage", "alternating", "together"]
