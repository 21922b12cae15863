"""DiffSegLung on Ray: the functions of `diffseglung`, scheduled over a cohort and a cluster, kept in MLflow.

A file for each stage that a cluster runs (`preparation`, `training`, `fitting`, `segmentation`,
`evaluation`, `tuning`), and what they share: `config`, `cohort`, `cluster`, `tracking`.
"""
