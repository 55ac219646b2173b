"""Operators in ``torch.ops.igm_fast``; importing this package registers all of them."""

from igm_fast.ops import covariance, covariance_sketch, projector, update

__all__ = ["covariance", "covariance_sketch", "projector", "update"]
