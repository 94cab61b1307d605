// testing.h: doctest's CHECK beside the op cases.
#pragma once

#include "tests/kernels/op_cases.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>
