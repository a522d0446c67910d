"""Interpolating a model: tables in the place of its nonlinear functions, and what that changes."""

from __future__ import annotations

from moesaic.interpolating.applying import Applied, Tables, applied_to, apply, needed, restore
from moesaic.interpolating.certificate import InterpolationCertificate, certify, site_rows
from moesaic.interpolating.choosing import BASELINES, Chords, choose
from moesaic.interpolating.profile import Profile, warnings
from moesaic.interpolating.saving import load, save
from moesaic.interpolating.sites import KINDS, Kind, Site

__all__ = [
    "BASELINES",
    "KINDS",
    "Applied",
    "Chords",
    "InterpolationCertificate",
    "Kind",
    "Profile",
    "Site",
    "Tables",
    "applied_to",
    "apply",
    "certify",
    "choose",
    "load",
    "needed",
    "restore",
    "save",
    "site_rows",
    "warnings",
]
