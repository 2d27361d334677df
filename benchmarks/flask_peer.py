"""The peer of `serving_speed.py`: a Flask app around the Hugging Face text-classification pipeline, as tutorials write it.

Runs in an environment of its own (`pip install torch transformers flask`): python benchmarks/flask_peer.py MODEL_FOLDER PORT
"""

from __future__ import annotations

import logging
import sys

from flask import Flask, jsonify, request
from transformers import pipeline

classify = pipeline("text-classification", model=sys.argv[1], framework="pt", device="cpu")
app = Flask(__name__)
logging.getLogger("werkzeug").setLevel(logging.ERROR)


@app.post("/predict")
def predict():  # type: ignore[no-untyped-def]
    return jsonify(classify(request.get_json()["text"]))


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[2]), threaded=True)
