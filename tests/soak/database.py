"""Runs inside the guest: an SQLite database that money moves in, and what became of it.

usage: database.py fill FILE JOURNAL-MODE    transfers until it is killed; the number of each on stdout once committed
       database.py check FILE LAST           what is wrong with it, in a line each; LAST: the last number that was told
"""

from __future__ import annotations

import sqlite3
import sys

ACCOUNTS = 100
EACH = 1000


def fill(file: str, mode: str) -> None:
    with sqlite3.connect(file, timeout=600, isolation_level=None) as database:
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
        database.execute("CREATE TABLE transfer (number INTEGER PRIMARY KEY, giver, taker, amount, note TEXT)")
        database.execute("CREATE INDEX by_note ON transfer (note)")
        database.executemany("INSERT INTO account VALUES (?, ?)", [(each, EACH) for each in range(ACCOUNTS)])
        number = 0
        while True:
            number += 1
            giver, taker, amount = number * 7 % ACCOUNTS, number * 13 % ACCOUNTS, number % 50
            database.execute("BEGIN IMMEDIATE")
            database.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, giver))
            database.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, taker))
            row = (number, giver, taker, amount, f"{number * 2654435761 % 2**32:08x}" * 40)
            database.execute("INSERT INTO transfer VALUES (?, ?, ?, ?, ?)", row)
            database.execute("COMMIT")
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


def check(file: str, last: int) -> None:
    with sqlite3.connect(file) as database:
        for (line,) in database.execute("PRAGMA integrity_check"):
            if line != "ok":
                sys.stdout.write(f"integrity_check: {line}\n")
        ((total,),) = database.execute("SELECT sum(balance) FROM account")
        if total != ACCOUNTS * EACH:
            sys.stdout.write(f"half of a transfer: the balances make {total}\n")
        ((count, highest),) = database.execute("SELECT count(*), max(number) FROM transfer")
        if count != highest or highest < last:
            sys.stdout.write(f"{count} transfers up to number {highest}, and {last} were committed\n")


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(sys.argv[2], sys.argv[3])
    else:
        check(sys.argv[2], int(sys.argv[3]))
