"""A refund as a durable workflow: fixed steps, retries, a human's consent, and everything undone when it fails.

    mortice agent workflow run examples/agent/refund.py:refund --id r1 --input '{"order": "A-7", "amount": 20}'
    mortice agent workflow approve r1            (in another terminal)

Kill it at any moment and `mortice agent workflow resume r1` goes on. The "shop" is a file, so that one can see what was
done: $SHOP, else shop.log here.
"""

import os
from pathlib import Path
from typing import Any

from mortice.agent.workflow import Flow, Retry


def shop() -> Path:
    return Path(os.environ.get("SHOP", "shop.log"))


def note(line: str) -> None:
    with shop().open("a") as file:
        file.write(line + "\n")


def find_order(order: str) -> dict[str, Any]:
    """The shop answers at the second try, as shops do."""
    tries = shop().read_text().count("looked up") if shop().exists() else 0
    note(f"looked up {order}")
    if tries == 0:
        raise ConnectionError("the shop is busy")
    return {"order": order, "paid": 50}


def reserve(order: str, amount: int) -> str:
    note(f"reserved {amount} for {order}")
    return f"reservation-{order}"


def release(reservation: str, order: str, amount: int) -> None:
    note(f"released {amount} of {reservation}")


def pay_out(reservation: str, amount: int) -> str:
    if amount > 40:
        raise ValueError("the till has no more than 40")
    note(f"paid {amount} from {reservation}")
    return f"receipt-{reservation}"


async def refund(flow: Flow, given: dict[str, Any]) -> dict[str, Any]:
    """Give `amount` back for `order`."""
    order, amount = given["order"], given["amount"]
    found = await flow.step(
        find_order, order, retry=Retry(attempts=3, pause_s=0.1, only=("ConnectionError",))
    )
    if amount > found["paid"]:
        return {"refused": f"only {found['paid']} was paid"}
    reservation = await flow.step(reserve, order, amount, undo=release)
    if amount >= 10:
        await flow.approve("pay the refund", {"order": order, "amount": amount})
    receipt = await flow.step(pay_out, reservation, amount)
    return {"receipt": receipt}
