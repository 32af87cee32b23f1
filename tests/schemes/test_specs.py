import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import odenets


@pytest.mark.parametrize("name", odenets.list_schemes())
def test_every_scheme_constructs_and_reads_back(name):
    scheme = odenets.get_scheme(name)
    assert str(scheme) == scheme.name == name and odenets.get_scheme(str(scheme)) == scheme and scheme.source
    assert scheme.order is None or scheme.order >= 1
    assert ("tol" in scheme.parameters) == ("max_iterations" in scheme.parameters)
    assert "tol" in scheme.parameters or not scheme.implicit


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("explicit", "explicit_euler"),
        ("implicit", "implicit_euler"),
        ("ssprk22", "heun"),
        (" rk4 ", "rk4"),
        ("rk4()", "rk4"),
        ("implicit(tol=1e-3)", "implicit_euler"),
        ("implicit(max_iterations=9, tol=1e-4)", "implicit_euler(tol=0.0001,max_iterations=9)"),
        ("ie_skip(gamma=0.1,iterations=1)", "ie_skip"),
        ("ie_skip(iterations=2,gamma=0.05)", "ie_skip(gamma=0.05,iterations=2)"),
        ("adaptive(method=bosh3,coupled=true)", "adaptive(method=bosh3,coupled=True)"),
    ],
)
def test_canonical_specs(spec, canonical):
    assert str(odenets.get_scheme(spec)) == canonical and odenets.get_scheme(spec) == odenets.get_scheme(canonical)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "unknown scheme 'nonsense'.*explicit_euler"),
        ("", "cannot read"),
        ("rk4(", "cannot read"),
        ("rk4)x", "cannot read"),
        ("ie_skip(gama=0.1)", "unknown parameter 'gama'.*gamma, iterations, theta"),
        ("rk4(tol=1e-3)", "unknown parameter 'tol'.*takes none"),
        ("ie_skip(gamma=0)", "gamma must be positive.*got 0"),
        ("ie_skip(gamma=-1)", "gamma"),
        ("ie_skip(gamma=inf)", "gamma"),
        ("ie_skip(gamma=nan)", "number"),
        ("ie_skip(gamma=abc)", "must be a number, got 'abc'"),
        ("ie_skip(iterations=1.5)", "whole number"),
        ("ie_skip(iterations=0)", "iterations"),
        ("ie_skip(theta=2)", "theta"),
        ("ie_skip(gamma)", "parameter=value"),
        ("ie_skip(gamma=1,gamma=2)", "stands twice"),
        ("implicit(tol=0)", "tol"),
        ("implicit(solver=magic)", "unknown solver 'magic'.*broyden"),
        ("implicit(on_failure=hide)", "on_failure"),
        ("adaptive(method=rk4)", "unknown method"),
        ("adaptive(rtol=0)", "rtol"),
        ("adaptive(coupled=maybe)", "true or false"),
        (None, "cannot read"),
        (3, "cannot read"),
    ],
)
def test_malformed_specs_get_one_clear_sentence(spec, message):
    with pytest.raises(ValueError, match=message):
        odenets.get_scheme(spec)


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 10), st.integers(1, 50), st.floats(0.01, 1))
def test_canonical_specs_read_back(gamma, iterations, theta):
    scheme = odenets.get_scheme(f"ie_skip(gamma={gamma!r},iterations={iterations},theta={theta!r})")
    assert odenets.get_scheme(str(scheme)) == scheme and (scheme.gamma, scheme.iterations, scheme.theta) == (
        gamma,
        iterations,
        theta,
    )


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"(implicit|ie_skip|adaptive|rk4)\([a-z]{0,6}=?[-0-9a-z.]{0,5}\)?", fullmatch=True))
def test_any_string_is_a_scheme_or_a_value_error(text):
    try:
        assert odenets.get_scheme(str(odenets.get_scheme(text))) == odenets.get_scheme(text)
    except ValueError as error:
        assert len(str(error)) < 600
