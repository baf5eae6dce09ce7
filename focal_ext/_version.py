# Owns: the version, in one place; setup.py and CMakeLists.txt read it from this line.
__version__ = "2.0.0"
