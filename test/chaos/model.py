"""What publishers publish and subscriptions want, said once for clients and checker (setup.sql says it in SQL)."""

HANDLERS = ("each", "batch", "ordered", "typed", "side")    # subscriptions with a handler
TABLES = HANDLERS + ("one",)    # those whose effects are rows
SUBSCRIPTIONS = TABLES + ("two",)


def bus(n):
    return "side" if n % 7 == 0 else "main"


def wants(subscription, n):
    """Does a subscription get event n of any client?"""
    if subscription == "side":
        return n % 7 == 0
    return n % 7 != 0 and (subscription != "typed" or n % 5 == 0)


def hopeless(subscription, n):
    """Must it end as a dead letter?"""
    return subscription == "each" and (n % 1009 == 0 or n % 1499 == 0 or n % 4001 == 0)
