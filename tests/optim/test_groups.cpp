// Which parameters of a CLIP are decayed, by both rules.
#include <string>
#include <vector>

#include "optim/groups.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

struct Case {
  const char* name;
  Shape shape;
  bool head, v3;
};

const std::vector<Case> parameters_of_clip{
    {"positional_embedding", {77, 512}, false, true},
    {"text_projection", {512, 512}, true, true},
    {"logit_scale", {}, false, false},
    {"logit_bias", {}, false, false},
    {"visual.class_embedding", {768}, false, false},
    {"visual.positional_embedding", {50, 768}, false, true},
    {"visual.proj", {768, 512}, true, true},
    {"visual.conv1.weight", {768, 3, 32, 32}, true, true},
    {"visual.ln_pre.weight", {768}, false, false},
    {"visual.ln_pre.bias", {768}, false, false},
    {"visual.transformer.resblocks.0.attn.in_proj_weight", {2304, 768}, true, true},
    {"visual.transformer.resblocks.0.attn.in_proj_bias", {2304}, false, false},
    {"visual.transformer.resblocks.0.attn.out_proj.weight", {768, 768}, true, true},
    {"visual.transformer.resblocks.0.ls_1.gamma", {768}, false, false},
    {"transformer.resblocks.3.mlp.c_fc.weight", {2048, 512}, true, true},
    {"transformer.resblocks.3.mlp.c_proj.bias", {512}, false, false},
    {"token_embedding.weight", {49408, 512}, true, true},
    {"ln_final.weight", {512}, false, false},
};

}  // namespace

TEST_CASE("decayed parameters of a CLIP") {
  for (const Case& c : parameters_of_clip) {
    CAPTURE(c.name);
    CHECK(decays(c.name, c.shape) == c.head);
    CHECK(decays(c.name, c.shape, DecayRule::head) == c.head);
    CHECK(decays(c.name, c.shape, DecayRule::v3) == c.v3);
  }
}

TEST_CASE("v3 looks for parts of the name, head does not") {
  for (const char* name : {"bn.matrix", "a.ln_matrix", "relative_bias_table", "logit_scale_matrix"}) {
    CAPTURE(name);
    CHECK_FALSE(decays(name, {4, 4}, DecayRule::v3));
    CHECK(decays(name, {4, 4}, DecayRule::head));
  }
  CHECK(decays("positional_embedding_of_something_else", {4, 4}, DecayRule::head));
}

TEST_CASE("excluded globs match the whole name") {
  const std::vector<std::string> globs{"visual.conv1.*", "*.mlp.c_?c.weight", "token_[a-f]mbedding.weight"};
  CHECK_FALSE(decays("visual.conv1.weight", {8, 3, 2, 2}, DecayRule::head, globs));
  CHECK_FALSE(decays("transformer.resblocks.11.mlp.c_fc.weight", {8, 8}, DecayRule::v3, globs));
  CHECK_FALSE(decays("token_embedding.weight", {8, 8}, DecayRule::head, globs));
  CHECK(decays("visual.proj", {8, 8}, DecayRule::head, globs));
  CHECK(decays("other.visual.conv1.weight", {8, 8}, DecayRule::head, globs));

  CHECK(matches_glob("a/b.c", "*"));
  CHECK(matches_glob(".hidden", "*"));
  CHECK_FALSE(matches_glob("weight", "weigh"));
  CHECK(matches_glob("b", "[!a]"));
  CHECK_FALSE(matches_glob("a", "[!a]"));
}

TEST_CASE("names of --wd-groups") {
  CHECK(decay_rule("head") == DecayRule::head);
  CHECK(decay_rule("v3") == DecayRule::v3);
  CHECK_THROWS_WITH_AS(decay_rule("v2"), "--wd-groups v2 is not known: use head or v3", Error);
}
