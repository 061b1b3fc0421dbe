"""Is it the probe's fault that language is not linear? Other linear probes, and probes that never saw a kind of text.

$ python benchmarks/language_linear.py runs/store
"""

import argparse
import time
import warnings

import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from sparsight.activations import ActivationStore
from sparsight.evaluation.features.class_means import ClassMeans, shared_between_strata
from sparsight.evaluation.features.labelled import Documents, examples_of, labelled_features
from sparsight.evaluation.features.nonlinearity import accuracy, answers
from sparsight.evaluation.features.probes import logistic
from sparsight.evaluation.features.site_map import stream_of
from sparsight.models import Site


def main() -> None:
    """Print balanced accuracies on held-out documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="activations of the organism, with labels")
    parser.add_argument("--feature", default="language")
    parser.add_argument("--kinds", default="domain", help="feature whose classes are left out in turn")
    parser.add_argument("--home", default="3.resid_mid", help="site for the other probes")
    given = parser.parse_args()
    began = time.perf_counter()
    warnings.simplefilter("ignore")  # of fits that end at their last step: the number stands beside
    store = ActivationStore(given.store)
    feature, kinds = labelled_features(store, [given.feature, given.kinds])
    e = examples_of(feature, Documents.of(store), sizes=(12_000, 3000, 6000))
    n, parts = e.n_classes, (e.fit, e.choose, e.judge)
    xs = [store.rows(Site.parse(given.home), part.rows).double() for part in parts]
    mean, scale = xs[0].mean(dim=0), xs[0].std(dim=0)
    standard = [((x - mean) / scale).numpy() for x in xs]
    probes = {"quadratic discriminant": QuadraticDiscriminantAnalysis(reg_param=0.01)}
    for strength in (0.01, 0.1, 1, 10, 100):
        probes[f"logistic, L-BFGS, C={strength}"] = LogisticRegression(C=strength, max_iter=5000, tol=1e-6)
        newton = LogisticRegression(C=strength, max_iter=500, tol=1e-6, solver="newton-cg", class_weight="balanced")
        probes[f"logistic, Newton, balanced, C={strength}"] = newton
        probes[f"linear SVM, C={strength / 100}"] = LinearSVC(C=strength / 100, dual=False, max_iter=5000)
    print(f"{len(e.fit)} tokens at {given.home}: fitted, choosing, judged")
    for name, probe in probes.items():
        probe.fit(standard[0], e.fit.y.numpy())
        reached = [accuracy(torch.from_numpy(probe.predict(x)), p, n) for x, p in zip(standard, parts, strict=True)]
        print(f"{name:40s} {reached[0]:.3f} {reached[1]:.3f} {reached[2]:.3f}")
    print(f"fitted on all {given.kinds}s but one and judged on that; agreement of class means between {given.kinds}s")
    here = [kinds.labels[part.rows] for part in (e.fit, e.judge)]
    for site in stream_of([str(site) for site in store.sites]):
        x, asked = (store.rows(Site.parse(site), part.rows) for part in (e.fit, e.judge))
        found = torch.zeros_like(e.judge.y)
        for kind in range(len(kinds.classes)):
            seen, unseen = here[0] != kind, here[1] == kind
            found[unseen] = answers(logistic(x[seen], e.fit.y[seen], n, strength=0.1), asked[unseen])
        first, second = (
            ClassMeans.of(values, part.y, of, n, len(kinds.classes))
            for values, part, of in ((x, e.fit, here[0]), (asked, e.judge, here[1]))
        )
        shared = shared_between_strata(first, second)
        print(f"{site:14s} {accuracy(found, e.judge, n):.3f} {'-' if shared is None else f'{shared:.2f}'}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
