"""How well a model plans, and why its plans fail: answers, scores, intervals, comparisons, reports.

`score` judges one response and `summary` averages; they know nothing of models, so that bags and
other planners are scored by them too. `answers`, `pipeline` and `endpoint_run` let models
answer. `results` writes what came out, `compare` and `report` read it.
"""
