"""Names that people import."""


def test_the_former_name_of_the_attention_package_is_the_package():
    import diffvit.interpret

    assert diffvit.interpret is diffvit.attention

    from diffvit.interpret import capture

    assert capture is diffvit.attention.capture
