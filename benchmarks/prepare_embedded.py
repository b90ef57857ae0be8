"""Creates the embedded data sets from their originals.

    python benchmarks/prepare_embedded.py --originals=FOLDER [--out=kd_jax/data/embedded]

FOLDER has ``movietweetings-100k/`` (ratings.dat, movies.dat, LICENSE: the 100K snapshot of
MovieTweetings) and ``online-retail/transactions.parquet`` (UCI Online Retail). The output is the
same, byte for byte, with the same version of polars.
"""

import argparse
from pathlib import Path

import polars as pl


def by_first_appearance(interactions: pl.DataFrame) -> pl.DataFrame:
    """Rows in order of time, users renumbered 1, 2, 3, … in the order in which they first appear.

    The original user ids are gone: they are what connects a row with a Twitter account or a
    customer account.
    """
    interactions = interactions.sort("timestamp", maintain_order=True)
    users = interactions.select(pl.col("user").unique(maintain_order=True)).with_row_index(
        "number", offset=1
    )
    return (
        interactions.join(users, on="user", how="left", maintain_order="left")
        .with_columns(user=pl.col("number").cast(pl.Int32))
        .drop("number")
    )


def double_colon(path: Path, names: list[str]) -> pl.DataFrame:
    lines = pl.DataFrame({"line": path.read_text(encoding="utf-8").rstrip("\n").split("\n")})
    return lines.select(
        pl.col("line").str.splitn("::", len(names)).struct.rename_fields(names)
    ).unnest("line")


def movietweetings(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    ratings = double_colon(folder / "ratings.dat", ["user", "item", "rating", "timestamp"])
    ratings = ratings.cast(
        {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
    )
    films = double_colon(folder / "movies.dat", ["item", "title", "genres"])
    films = films.with_columns(
        pl.col("item").cast(pl.Int32),
        pl.col("title").str.strip_chars(),
        pl.col("genres").str.replace_all("|", ", ", literal=True),
    )
    return by_first_appearance(ratings), films.sort("item")


def online_retail(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """First purchases of customers.

    Cancellations, returns, unknown customers, gifts at price 0 and rows without a product are left
    out. A product code is five digits and perhaps a letter or two; POST, D, M, C2, DOT, BANK
    CHARGES and PADS are no products. The text of a product is its most frequent description, of
    ties the first in the alphabet.
    """
    sales = (
        pl.read_parquet(folder / "transactions.parquet")
        .filter(
            ~pl.col("InvoiceNo").str.starts_with("C"),
            pl.col("Quantity") > 0,
            pl.col("UnitPrice") > 0,
            pl.col("CustomerID").is_not_null(),
            pl.col("StockCode").str.contains(r"^\d{5}"),
        )
        .select(
            user=pl.col("CustomerID").cast(pl.Int32),
            item=pl.col("StockCode").str.to_uppercase(),
            timestamp=pl.col("InvoiceDate").dt.epoch("s"),
            description=pl.col("Description").str.replace_all(r"\s+", " ").str.strip_chars(),
        )
    )
    texts = (
        sales.group_by("item", "description")
        .len()
        .sort("item", -pl.col("len").cast(pl.Int64), "description")
    )
    products = texts.unique("item", keep="first", maintain_order=True).select("item", "description")
    purchases = by_first_appearance(sales.drop("description"))
    return purchases.unique(["user", "item"], keep="first", maintain_order=True), products


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--originals", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "kd_jax/data/embedded"
    )
    args = parser.parse_args()
    for name, (interactions, items) in {
        "movietweetings": movietweetings(args.originals / "movietweetings-100k"),
        "online_retail": online_retail(args.originals / "online-retail"),
    }.items():
        for kind, frame in (("interactions", interactions), ("items", items)):
            path = args.out / name / f"{kind}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.write_parquet(path, compression="zstd", compression_level=19)
            print(f"{path}: {frame.height:,} rows, {path.stat().st_size:,} bytes")
        print(
            f"{name}: {interactions['user'].n_unique():,} users,"
            f" {interactions['item'].n_unique():,} items"
        )
    licence = args.originals / "movietweetings-100k" / "LICENSE"
    (args.out / "movietweetings" / "LICENSE").write_bytes(licence.read_bytes())


if __name__ == "__main__":
    main()
