from tests.e2e.story import Story, story as story
def test_x(story: Story) -> None:
    a = story.agree()
    run = story.submit(a)
    print(run.ended())
    print(story.log("lab")[-3:])
