"""Second derivatives of a loss: exact, estimated, and how much of them lies within blocks."""

from lightning_adam_mini.analysis.hessian.curvature import Curvature as Curvature
from lightning_adam_mini.analysis.hessian.curvature import differentiate_twice as differentiate_twice
from lightning_adam_mini.analysis.hessian.estimates import Estimate as Estimate
from lightning_adam_mini.analysis.hessian.estimates import Spectrum as Spectrum
from lightning_adam_mini.analysis.hessian.estimates import extreme_eigenvalues as extreme_eigenvalues
from lightning_adam_mini.analysis.hessian.estimates import hutchinson_traces as hutchinson_traces
from lightning_adam_mini.analysis.hessian.estimates import lanczos as lanczos
from lightning_adam_mini.analysis.hessian.exact import exact_hessian as exact_hessian
from lightning_adam_mini.analysis.hessian.structure import Mass as Mass
from lightning_adam_mini.analysis.hessian.structure import Share as Share
