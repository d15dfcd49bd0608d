"""Writes sklearn_pipeline.onnx beside it: a scaler and a network of scikit-learn, exported by skl2onnx.

pip install skl2onnx scikit-learn
python tests/onnx/exported/write_sklearn.py
"""

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 3, (64, 5)).astype(np.float32), rng.normal(size=(64, 2)).astype(np.float32)
    pipeline = make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(6,), max_iter=2000, random_state=0)
    ).fit(x, y)
    proto = to_onnx(pipeline, x[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    Path(__file__).with_name("sklearn_pipeline.onnx").write_bytes(proto.SerializeToString())


if __name__ == "__main__":
    main()
