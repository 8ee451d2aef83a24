"""What customers write to the demo's help desk: issues, products, moods, greetings. Words only, no logic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Issue:
    """One thing that customers write about; `phrases` have slots such as {product} or {order}."""

    queue: str
    priority: str  # unless the ticket says how urgent it is
    weight: float  # how often, relative to the others of its time
    phrases: tuple[str, ...]


OLD_ISSUES = (
    Issue(
        "billing",
        "normal",
        5,
        (
            "I was charged twice for {product}",
            "the invoice for order {order} says {amount} but I agreed to {amount}",
            "you took {amount} from my card and I do not know what for",
            "my refund of {amount} is not on my bank statement after {days} days",
            "the discount code was not taken off the bill for {product}",
        ),
    ),
    Issue(
        "billing",
        "low",
        2,
        ("please send me a VAT invoice for order {order}", "I need a receipt for {product} for my tax return"),
    ),
    Issue(
        "billing",
        "high",
        1.5,
        ("my card was declined but the money left my account", "there is a payment of {amount} I never made"),
    ),
    Issue(
        "shipping",
        "normal",
        6,
        (
            "the parcel with {product} has not arrived, tracking has not moved for {days} days",
            "where is order {order}? it was due {days} days ago",
            "the courier says delivered but there is no package with {product}",
            "tracking for order {order} shows nothing",
        ),
    ),
    Issue(
        "shipping",
        "low",
        1.5,
        ("do you ship {product} to {place}", "what does delivery to {place} cost", "how long is delivery to {place}"),
    ),
    Issue(
        "shipping",
        "high",
        1.5,
        ("order {order} is going to the wrong address", "the driver left the parcel with {product} in the street"),
    ),
    Issue(
        "returns",
        "normal",
        5,
        (
            "I want to send back {product}, it is the wrong colour",
            "{product} does not fit, I would like to exchange it for {colour}",
            "the return label for order {order} does not print",
            "I sent {product} back {days} days ago and heard nothing",
        ),
    ),
    Issue("returns", "low", 1.5, ("until when can I return {product}", "is the return of {product} free from {place}")),
    Issue(
        "returns",
        "high",
        1.5,
        ("{product} arrived broken and I need a replacement", "{product} has sharp edges and cut my hand"),
    ),
    Issue(
        "account",
        "normal",
        4,
        (
            "I cannot log in, it says wrong password",
            "the password reset mail never arrives",
            "the login code comes {days} minutes too late",
            "I have two accounts and want to merge them",
        ),
    ),
    Issue("account", "low", 1.5, ("please change my name to {name}", "how do I stop the newsletter")),
    Issue(
        "account",
        "high",
        1,
        ("somebody changed the email of my account", "there are orders in my account that I did not place"),
    ),
    Issue(
        "technical",
        "normal",
        5,
        (
            "{product} does not turn on any more",
            "the app shows error {code} when I open it",
            "{product} makes a strange noise since {days} days",
            "the battery of {product} is empty after {days} hours",
            "the website is stuck at checkout with error {code}",
        ),
    ),
    Issue("technical", "low", 1.5, ("where is the manual of {product}", "how do I clean {product}")),
    Issue(
        "technical", "high", 1.5, ("{product} gets very hot and smells burnt", "there is smoke coming from {product}")
    ),
    Issue(
        "sales",
        "low",
        3,
        (
            "is {product} in stock in {colour}",
            "which one is better, {product} or {product}",
            "when will {product} be on sale",
            "what is the price of {product} with engraving",
        ),
    ),
    Issue(
        "sales",
        "normal",
        2,
        ("we need {days} pieces of {product}, please send a quote", "do schools get a discount on {product}"),
    ),
)

# The launch: a line for the smart home, a plan that goes with it, and people who install it.
NEW_ISSUES = (
    Issue(
        "smart-home",
        "normal",
        6,
        (
            "{new} will not pair with the bridge, it only blinks {colour}",
            "{new} drops out of the mesh every {days} minutes",
            "firmware {code} is stuck on {new}",
            "the voice assistant does not find {new}",
            "my scenes with {new} do not run at sunset",
            "{new} shows as offline in Lumina although the bridge is fine",
        ),
    ),
    Issue("smart-home", "low", 1.5, ("does {new} speak Matter or Zigbee", "can {new} share a scene with {new}")),
    Issue("smart-home", "high", 2, ("{new} unlocked by itself", "{new} locked us out, the bridge does not answer")),
    Issue(
        "plans",
        "normal",
        4,
        (
            "my Lumina Care trial turned into a yearly plan of {amount}",
            "Lumina Care does not show the recordings of {new}",
            "I upgraded to Lumina Care family and {new} is still on basic",
            "please pause my Lumina Care membership for {days} weeks",
        ),
    ),
    Issue("plans", "low", 1.5, ("what is in Lumina Care family", "is there a student plan of Lumina Care for {new}")),
    Issue(
        "installation",
        "normal",
        3,
        (
            "I want to book a fitter for {new}",
            "the fitter for {new} did not come, slot {order}",
            "please move my fitting slot {order} by {days} days",
        ),
    ),
    Issue("installation", "high", 1.5, ("the fitter left bare wires behind {new}", "sparks since {new} was wired in")),
    Issue(
        "returns",
        "normal",
        1.5,
        ("I would like to trade in {product} for {new}", "trade-in kit {order} for {new} never came"),
    ),
    Issue(
        "shipping",
        "normal",
        1.5,
        ("my preorder of {new} is still in wave {code}", "when does wave {code} of {new} leave for {place}"),
    ),
    Issue("sales", "low", 1.5, ("does the starter bundle have {new}", "can I swap {new} in the bundle for {new}")),
)

BRANDS = ("Aero", "Bristol", "Corvo", "Delta", "Elm", "Fjord", "Granit", "Harbour", "Ibis", "Juno", "Kestrel", "Nord")
ITEMS = (
    "kettle", "backpack", "headphones", "desk lamp", "toaster", "rain jacket", "office chair", "speaker", "watch",
    "blender", "tent", "running shoes", "mug set", "vacuum cleaner", "keyboard", "suitcase",
)  # fmt: skip
NEW_PRODUCTS = (
    "Lumina Halo", "Lumina Halo Mini", "GlowStrip", "GlowStrip XL", "Pebble sensor", "Tesso lock", "Tesso keypad",
    "Vanta cam", "Vanta doorbell", "Qube thermostat", "Lumina dimmer", "Zephyr blinds", "Orb switch", "Kilo plug",
)  # fmt: skip
OWNERS = ("my", "my", "the", "the", "our", "a")
COLOURS = ("red", "blue", "black", "white", "green", "grey", "amber")
PLACES = ("Norway", "Leeds", "Graz", "Lyon", "Porto", "Malta", "Ghent", "Turku", "Cork", "Zurich", "Bergen", "Gdansk")
NAMES = ("Alex", "Bea", "Chidi", "Dana", "Emre", "Femi", "Greta", "Hana", "Ivo", "Jun", "Kim", "Lena", "Mo", "Nils",
         "Olga", "Priya", "Quentin", "Rosa", "Sam", "Tariq", "Uma", "Vera", "Wim", "Yara", "Zoe")  # fmt: skip

GREETINGS = ("Hi", "Hello", "Hello team", "Good morning", "Dear support", "Hey", "Hi there", "To whom it may concern")
CLOSINGS = ("Thanks", "Regards", "Best", "Thank you", "Cheers", "Kind regards", "Many thanks")
FILLERS = ("I am a customer since {year}", "I already wrote to you", "the reference is {order}",
           "I looked in the FAQ", "it was a present", "my neighbour has the same")  # fmt: skip
# What makes a ticket high or low whatever it is about.
URGENT = ("this is urgent", "I need an answer today", "please hurry", "this is the third time I write", "ASAP please")
CALM = ("no rush", "whenever you have time", "just wondering", "it can wait")
NEW_URGENT = ("the house is dark", "guests arrive tonight", "the kids are locked out")
