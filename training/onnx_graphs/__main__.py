"""Command line: the graphs of a checkpoint folder."""

import argparse
from pathlib import Path

from training.onnx_graphs import write_graphs


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_graphs(parser.parse_args().folder)


if __name__ == "__main__":
    main()
