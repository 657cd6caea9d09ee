"""The sentences of the demo's dialogues, by topic. All invented; names of drugs and tests are common words.

Each topic has statements (said in passing, in any dialogue) and questions. A dialogue's category is the topic of its
last question and of nothing else, so most of its words point elsewhere: a model has to learn where to look.
Slots such as ``{drug}`` are filled by ``data``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FIRST_NAMES", "SLOTS", "SURNAMES", "TOPICS", "Topic"]


@dataclass(frozen=True)
class Topic:
    statements: tuple[str, ...]
    questions: tuple[str, ...]


TOPICS: dict[str, Topic] = {
    "chief_complaint": Topic(
        statements=(
            "The {symptom} started on {day} and it comes and goes.",
            "I have had this {symptom} for {count} days now.",
            "It is mostly the {symptom}, worse at night.",
            "The {symptom} kept me from sleeping twice this week.",
            "On {day} the {symptom} was bad enough that I left work.",
            "My {relative} noticed that I look pale with this {symptom}.",
        ),
        questions=(
            "What brings you in to see us today?",
            "Could you tell me where exactly it hurts and since when?",
            "Is the {symptom} something I should come in for?",
            "It got worse over the weekend, should somebody look at it?",
            "What is bothering you the most at the moment?",
            "Why does it flare up whenever I climb the stairs?",
            "When did you first notice that something was wrong?",
            "How would you describe what you are feeling right now?",
            "Can {symptom} like that go away by itself?",
            "Is it normal that I still feel this bad after {count} days?",
            "Does anything make it better, or worse?",
            "How strong is it, from one to ten?",
        ),
    ),
    "allergies": Topic(
        statements=(
            "My chart says that I react to {allergen}.",
            "I came out in hives after {allergen} as a child.",
            "We wrote down {allergen} as a reaction in {year}.",
            "{allergen_cap} makes my lips swell, so I stay away from it.",
            "I carry the pen because of {allergen}.",
            "There was a rash once after {drug}, nothing since.",
        ),
        questions=(
            "Have you ever reacted badly to anything, {allergen} for example?",
            "Is it safe for me, given what {allergen} did to me in {year}?",
            "Could the hives be from {allergen}?",
            "Did your throat or your face ever swell after eating something?",
            "Should I still carry the pen everywhere?",
            "Is there something that we must never give you?",
            "Can you take {allergen} off my list, since nothing happened the last time?",
            "Does {drug} contain anything that would make me break out again?",
            "What happens to your skin when you touch {allergen}?",
            "Would a skin test show which of them I can't tolerate?",
            "How quickly did the itching come on?",
            "Which foods do you have to avoid?",
        ),
    ),
    "medications": Topic(
        statements=(
            "I take {drug} {dose} every morning.",
            "They moved me from {drug} to {drug2} in {month}.",
            "I ran out of {drug} on {day}.",
            "The {drug} is down to {dose} now.",
            "I keep forgetting the evening dose of {drug}.",
            "My {relative} sorts my pills into a box each week.",
        ),
        questions=(
            "Is it still one in the morning and one at night?",
            "Which pills are you on at the moment?",
            "May I take {drug} together with {drug2}?",
            "Could you send {count} more weeks of the {dose} ones to the pharmacy?",
            "What should I do about the dose that I missed on {day}?",
            "Are you still using the inhaler?",
            "Can I cut the {dose} tablets in half?",
            "Do I go on with {drug} now that I feel better?",
            "How often do you take something for it over the counter?",
            "Is there a cheaper version of {drug} that works as well?",
            "Should it be swallowed with food or on an empty stomach?",
            "Did {drug} make you dizzy since we raised it to {dose}?",
        ),
    ),
    "family_history": Topic(
        statements=(
            "My {relative} had {condition} at {age}.",
            "There is {condition} on my {side} side.",
            "My {relative} and my {relative2} were both treated for {condition}.",
            "Nobody at home has {condition}, as far as I know.",
            "My {relative} passed away in {year}, it was {condition}.",
            "Only my {relative} is still alive on my {side} side.",
        ),
        questions=(
            "Does anybody related to you have {condition}?",
            "How old was your {relative} when it was found?",
            "Since my {relative} had it, will I get {condition} too?",
            "Are your parents both still well?",
            "What did your {relative} die of?",
            "Do things like this run in your {side} line?",
            "Should my children be checked, now that their {relative} and I both have it?",
            "Is it inherited, or was my {relative} just unlucky?",
            "Did any of your brothers or sisters have heart trouble before {age}?",
            "Has your {relative} ever been told about {condition}?",
            "Would the gene that they found in my {relative} matter for me?",
            "Who else among your relatives was treated for {condition}?",
        ),
    ),
    "social_history": Topic(
        statements=(
            "I work nights at the {workplace}.",
            "I stopped smoking in {year}.",
            "I live with my {relative} on the {ordinal} floor.",
            "We have a glass of wine on {day}s.",
            "I have been out of work since {month}.",
            "I walk to the {workplace}, about {count} blocks.",
        ),
        questions=(
            "How many drinks would you say you have in a week?",
            "Do you smoke, or did you ever?",
            "Who lives at home with you?",
            "What do you do for a living?",
            "Do you feel safe where you live?",
            "Are you still at the {workplace}, or did you stop?",
            "Does anybody help you with shopping and cooking?",
            "How much do you move on a normal day?",
            "Would vaping count as well when you ask about that?",
            "Have you used anything else, like cannabis, since {month}?",
            "Is the shift work still keeping you up?",
            "How many packs was it before you quit in {year}?",
        ),
    ),
    "procedures": Topic(
        statements=(
            "I had the {procedure} in {month} {year}.",
            "They had to stop the {procedure} half way through.",
            "The scar from the {procedure} has healed well.",
            "Doctor {surname} did my {procedure}.",
            "I am down for a {procedure} at the end of {month}.",
            "They kept me one night after the {procedure}.",
        ),
        questions=(
            "Have you ever been operated on?",
            "How long will I be asleep for it?",
            "Who will be doing the {procedure}, Doctor {surname}?",
            "May I eat before they put me under?",
            "Did they take everything out, or was some of it left?",
            "When was your {procedure}?",
            "How long until the stitches can come out?",
            "Does the {procedure} hurt?",
            "What could go wrong during the {procedure}?",
            "Will I be able to drive myself home afterwards?",
            "Was there any trouble with the anesthesia in {year}?",
            "Can it be done through the keyhole again?",
        ),
    ),
    "test_results": Topic(
        statements=(
            "They took blood on {day}.",
            "The {test} from {month} was a little high.",
            "The lab called my {relative} instead of me.",
            "My last {test} was fine.",
            "I saw a red arrow next to the {test} in the portal.",
            "They repeated the {test} because the first tube had clotted.",
        ),
        questions=(
            "Did the {test} come back yet?",
            "Is {value} too high?",
            "What does the red arrow next to it mean?",
            "Could you explain the numbers from {day}?",
            "Why was mine flagged when last year it was {value}?",
            "Has the lab sent you anything?",
            "Is there anything on the pictures that I should worry about?",
            "Was it positive?",
            "How far is {value} from where it ought to be?",
            "Do they have to draw it again because the sample was spoiled?",
            "Did Doctor {surname} look at my {test}?",
            "Can you post me a copy of the {test} from {month}?",
        ),
    ),
    "immunizations": Topic(
        statements=(
            "I had the {vaccine} shot in {month}.",
            "My arm was sore for {count} days after the {vaccine} shot.",
            "The {workplace} wants a record of my {vaccine} shot.",
            "I lost the yellow card when we moved in {year}.",
            "My {relative} got the {vaccine} one at the pharmacy.",
            "I missed the second {vaccine} dose.",
        ),
        questions=(
            "Am I due for another jab?",
            "When did you have your last {vaccine} shot?",
            "Do I need a booster before we travel in {month}?",
            "Can I get {vaccine} and {vaccine2} in the same arm?",
            "Is a fever normal the day after the needle?",
            "Are you up to date with {vaccine}?",
            "Which ones does the {workplace} ask for before I may start?",
            "How long does the protection against {vaccine} last?",
            "Must the series be started again if I missed the second one?",
            "Could I have it even though I have a cold?",
            "Is there any proof that you were given {vaccine} in {year}?",
            "At {age}, should my {relative} get the one against {vaccine}?",
        ),
    ),
    "follow_up": Topic(
        statements=(
            "I was told to be back in {count} weeks.",
            "My next visit is on {day} the {monthday}.",
            "I had to cancel on {day}.",
            "Doctor {surname} has nothing free before {month}.",
            "The bus only gets me there after {hour}.",
            "I would rather talk by video than come in.",
        ),
        questions=(
            "When do you want to see me again?",
            "Can we move it to {day} at {hour}?",
            "Do you have anything earlier than {month}?",
            "Would a video call do instead of coming in?",
            "Is {count} weeks soon enough to check on it?",
            "Could somebody call me to find a new time?",
            "Shall we put you down for the {monthday}?",
            "Who do I see once Doctor {surname} has left?",
            "Did you get the referral that I need before I can be seen there?",
            "Should I come back if it isn't gone by {day}?",
            "Was it the {monthday} or the {ordinal} that we agreed on?",
            "Will you remind me a day before?",
        ),
    ),
    "billing": Topic(
        statements=(
            "I got a letter about {amount} dollars.",
            "My plan changed in {month}.",
            "The card on file expired.",
            "I paid {amount} at the desk on {day}.",
            "My {relative} used to handle the paperwork with {insurer}.",
            "{insurer} says that it was never sent to them.",
        ),
        questions=(
            "Why was I charged {amount} twice?",
            "Does {insurer} cover it?",
            "Can I pay the {amount} in parts?",
            "Is it free for me, or do I owe something at the desk?",
            "Which plan are you with now?",
            "Who do I talk to about the letter that I got?",
            "Has the claim been sent to {insurer}?",
            "How much will it be out of my own pocket?",
            "Could you take {amount} off, since the visit never happened?",
            "Do I need approval from {insurer} first?",
            "Is the number on my card still the right one?",
            "What is the {amount} from {month} for?",
        ),
    ),
}

SLOTS: dict[str, tuple[str, ...]] = {
    "symptom": (
        "headache", "cough", "chest pain", "back pain", "dizziness", "stomach ache", "knee pain", "fatigue",
        "sore throat", "ringing in the ear", "numbness in the hand", "shortness of breath",
    ),
    "allergen": ("penicillin", "latex", "peanuts", "shellfish", "bee stings", "sulfa", "iodine", "egg", "aspirin"),
    "drug": (
        "metformin", "lisinopril", "atorvastatin", "omeprazole", "sertraline", "levothyroxine", "albuterol",
        "amlodipine", "gabapentin", "ibuprofen", "prednisone", "warfarin",
    ),
    "dose": ("5 mg", "10 mg", "20 mg", "25 mg", "50 mg", "100 mg", "250 mg", "500 mg"),
    "relative": ("mother", "father", "sister", "brother", "aunt", "uncle", "grandmother", "grandfather", "cousin"),
    "condition": (
        "diabetes", "breast cancer", "a stroke", "high blood pressure", "colon cancer", "asthma", "glaucoma",
        "kidney disease", "a heart attack", "thyroid disease",
    ),
    "side": ("mother's", "father's"),
    "workplace": ("warehouse", "school", "bakery", "hospital", "depot", "call center", "nursery", "shipyard"),
    "procedure": (
        "colonoscopy", "hernia repair", "knee replacement", "gallbladder removal", "biopsy", "cataract surgery",
        "tonsillectomy", "stent", "root canal", "cesarean",
    ),
    "test": (
        "cholesterol", "A1c", "potassium", "thyroid panel", "urine culture", "chest X-ray", "mammogram", "MRI",
        "blood count", "ferritin",
    ),
    "value": ("5.9", "6.4", "7.1", "112", "128", "141", "187", "204", "231", "0.8", "3.1"),
    "vaccine": ("flu", "tetanus", "shingles", "hepatitis B", "measles", "pneumonia", "COVID", "HPV"),
    "insurer": ("Bluefern Health", "Northgate Mutual", "Alder Life", "the state plan", "Harbor Care"),
    "amount": ("35", "48.20", "75", "112.50", "140", "215", "260.75", "389", "640"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ),
    "hour": ("8:15", "9:30", "10:45", "1:20", "2:30", "3:45", "4:10"),
    "ordinal": ("second", "third", "fourth", "fifth", "sixth", "ninth"),
}  # fmt: skip

FIRST_NAMES = (
    "Maria", "Tomas", "Aisha", "Henrik", "Lucia", "Devon", "Priya", "Oskar", "Noemi", "Caleb", "Yuki", "Farida",
    "Jonas", "Imani", "Stefan", "Rosa", "Malik", "Greta", "Ivo", "Salma", "Bruno", "Linnea", "Kofi", "Teresa",
    "Arjun", "Nadia", "Elias", "Mei", "Pablo", "Hanna", "Omar", "Vera", "Felix", "Zainab", "Theo", "Carmen",
)  # fmt: skip

SURNAMES = (
    "Okafor", "Lindqvist", "Marchetti", "Delacroix", "Ferreira", "Novak", "Haddad", "Brandt", "Castellano", "Nakamura",
    "Osei", "Petrov", "Quintero", "Rahman", "Sorensen", "Tanaka", "Ulrich", "Vargas", "Whitlock", "Yilmaz", "Abara",
    "Bellweather", "Cardoso", "Dunmore", "Eklund", "Fontaine", "Galloway", "Hollis", "Iversen", "Jankowski", "Kessler",
    "Lockhart", "Mbeki", "Norgaard", "Ostrander", "Pereira", "Ravenscroft", "Sandoval", "Thackeray", "Underhill",
)  # fmt: skip
