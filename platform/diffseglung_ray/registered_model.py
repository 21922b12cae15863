"""The code file of every registered model. MLflow runs it when it loads a version; it calls the installed package."""

from diffseglung_ray.tracking import serve

serve()
