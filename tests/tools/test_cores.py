from tools import cores


def test_tests_of_pure_modules_and_packages_are_found() -> None:
    found = cores.find_tests()
    assert {"tests/shared/test_access_table.py", "tests/shared/protocol", "tests/services/gateway/limits/test_limit_rules.py"} <= {*found}
