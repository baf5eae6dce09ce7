# Makes `examples` a regular package: a stray top-level package of the same name in site-packages would win over a
# namespace. Knows no example.
