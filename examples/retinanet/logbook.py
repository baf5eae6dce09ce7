# Owns the record of a training on disk: a CSV file, and TensorBoard events where that package is installed.
# Must not know what the numbers mean.

import csv

COLUMNS = ("step", "loss", "classification", "boxes", "gradient_norm", "lr", "ap50", "ap", "recall")


class Logbook:
    """Rows {column: number}, one per step; a column that a row lacks stays empty. A reader sees each row once it is
    written."""

    def __init__(self, folder, done=0):
        """done: steps whose rows are kept; later ones are of an interrupted epoch that is run again."""
        path = folder / "metrics.csv"
        kept = [row for row in read(path) if int(row["step"]) <= done] if done and path.exists() else []
        self.file = path.open("w", newline="", buffering=1)
        self.writer = csv.DictWriter(self.file, COLUMNS, restval="", lineterminator="\n")
        self.writer.writeheader()
        self.writer.writerows(kept)
        self.events = tensorboard(folder, done)

    def write(self, row):
        self.writer.writerow(row)
        if self.events is not None:
            for name, value in row.items():
                if name != "step":
                    self.events.add_scalar(name, value, row["step"])

    def close(self):
        self.file.close()
        if self.events is not None:
            self.events.close()


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tensorboard(folder, done):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=done + 1)
