"""DiffSegLung: diffusion radiomic distillation for unsupervised lung-pathology segmentation in chest CT.

Learn:    volume -> anatomy -> patches -> teacher -> distil => student -> features -> mixture -> tissue names => model
Segment:  volume -> anatomy -> patches -> features -> mixture -> tissue -> refine -> results

`diffseglung.segment` tells the second on a page. This package holds functions of arrays and tensors and knows
nothing of clusters; `diffseglung_ray` schedules the same functions on Ray.
"""

__version__ = "0.1.0"
