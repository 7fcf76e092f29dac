"""The Hub: push a verified model in one commit, pull one, and verify a folder or repository."""

from __future__ import annotations

from hftransfer.hub.publish import push
from hftransfer.hub.upload import Target, find_target
from hftransfer.hub.verification import Verification, pull, verify

__all__ = ["Target", "Verification", "find_target", "pull", "push", "verify"]
