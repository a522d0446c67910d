"""What the experts of a model learned, layer by layer."""

from moesaic.diagnostics.diagnosis import Diagnosis, LayerDiagnosis
from moesaic.diagnostics.driver import diagnose

__all__ = ["Diagnosis", "LayerDiagnosis", "diagnose"]
