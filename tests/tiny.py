"""Options of a small run; with the same ones the pictures are drawn once for all tests."""

TINY = ["efficiency=fast", "data.source.lesions=120", "data.batch_size=16", "model.image_size=32"]
TINY += ["data.source.native_size=32", "threads=1"]  # larger pictures take longer to draw
