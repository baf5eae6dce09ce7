# A small RetinaNet, trained from scratch on a real photograph; run it with `python -m examples.retinanet.demo`.
# Exports nothing: each file is imported by its own name.
