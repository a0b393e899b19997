// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_parse.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <optional>
#include <utility>

#include "model/jinja_lexer.h"
#include "model/jinja_text.h"

namespace kvrm::jinja {
namespace {

// Operator precedence follows the language: or, and, not, comparison, + -, ~, * / // %, **, sign.
// Every recursive descent passes Nest(), so depth is bounded before the stack is.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {
    for (const char* name : {"loop", "caller", "varargs", "kwargs"})
      Intern(name);
  }

  Result<Tree> Run() {
    tree_.root = Body({});
    if (!failed_ && !unknown_.empty()) {
      return Error{ErrorCode::kUnsupported, unknown_.front()};
    }
    if (failed_) {
      return Error{error_code_, "line " + std::to_string(error_line_) + ": " + error_};
    }
    return std::move(tree_);
  }

 private:
  // What the body of a macro or call block mentions.
  struct Uses {
    bool caller = false;
    bool varargs = false;
    bool kwargs = false;
  };

  class Nest {
   public:
    explicit Nest(Parser& parser) : parser_(parser) {
      if (++parser_.nesting_ > kMaxNesting) {
        parser_.Fail("nested deeper than " + std::to_string(kMaxNesting), ErrorCode::kTooLarge);
      }
    }
    ~Nest() { --parser_.nesting_; }
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;

   private:
    Parser& parser_;
  };

  // After a failure every token reads as the end, so all loops run out.
  const Token& Peek(std::size_t ahead = 0) const {
    if (failed_) return tokens_.back();
    return tokens_[std::min(pos_ + ahead, tokens_.size() - 1)];
  }
  Token Next() {
    const Token token = Peek();
    if (pos_ + 1 < tokens_.size()) ++pos_;
    return token;
  }
  bool IsOperator(std::string_view text, std::size_t ahead = 0) const {
    return Peek(ahead).kind == TokenKind::kOperator && Peek(ahead).text == text;
  }
  bool IsName(std::string_view text, std::size_t ahead = 0) const {
    return Peek(ahead).kind == TokenKind::kName && Peek(ahead).text == text;
  }
  bool SkipOperator(std::string_view text) {
    if (!IsOperator(text)) return false;
    Next();
    return true;
  }
  bool SkipName(std::string_view text) {
    if (!IsName(text)) return false;
    Next();
    return true;
  }
  void ExpectOperator(std::string_view text) {
    if (!SkipOperator(text)) Unexpected(std::string("'") + std::string(text) + "'");
  }
  void Expect(TokenKind kind, const char* what) {
    if (Peek().kind != kind) return Unexpected(what);
    Next();
  }
  std::string ExpectName(const char* what) {
    if (Peek().kind != TokenKind::kName) {
      Unexpected(what);
      return "";
    }
    return Next().text;
  }

  void Unexpected(const std::string& wanted) {
    const Token& token = Peek();
    std::string got;
    switch (token.kind) {
      case TokenKind::kName:
      case TokenKind::kOperator:
        got = "'" + token.text.substr(0, 32) + "'";
        break;
      case TokenKind::kEnd:
        got = "the end of the template";
        break;
      case TokenKind::kBlockEnd:
        got = "the end of the block";
        break;
      case TokenKind::kVariableEnd:
        got = "the end of the expression";
        break;
      default:
        got = "a literal or text";
        break;
    }
    Fail("expected " + wanted + ", got " + got);
  }

  void Fail(std::string message, ErrorCode code = ErrorCode::kInvalidArgument) {
    if (failed_) return;
    error_line_ = tokens_[std::min(pos_, tokens_.size() - 1)].line;
    failed_ = true;
    error_ = std::move(message);
    error_code_ = code;
  }

  NameId Intern(const std::string& name) {
    const auto [it, inserted] = ids_.try_emplace(name, static_cast<NameId>(tree_.names.size()));
    if (inserted) tree_.names.push_back(name);
    return it->second;
  }

  NodeId Add(Node node) {
    std::uint32_t depth = 0;
    const auto below = [&](NodeId id) {
      if (id != kNoNode) depth = std::max(depth, tree_.nodes[id].depth);
    };
    below(node.a);
    below(node.b);
    below(node.c);
    for (const NodeId id : node.kids)
      below(id);
    for (const Argument& argument : node.arguments)
      below(argument.value);
    for (const Parameter& parameter : node.parameters)
      below(parameter.default_value);
    node.depth = depth + 1;
    // a + b + c + ... leans to the left and is evaluated in a loop, so it adds no depth.
    if (IsChain(node.kind) && node.a != kNoNode && tree_.nodes[node.a].kind == node.kind) {
      const std::uint32_t right = node.b == kNoNode ? 0 : tree_.nodes[node.b].depth;
      node.depth = std::max(tree_.nodes[node.a].depth, right + 1);
    }
    if (node.depth > 4 * kMaxNesting) {
      Fail("expression nested deeper than " + std::to_string(4 * kMaxNesting),
           ErrorCode::kTooLarge);
    }
    if (tree_.nodes.size() >= kMaxNodes) {
      Fail("more than " + std::to_string(kMaxNodes) + " nodes", ErrorCode::kTooLarge);
    } else {
      tree_.nodes.push_back(std::move(node));
    }
    return static_cast<NodeId>(tree_.nodes.size() - 1);
  }
  static bool IsChain(NodeKind kind) {
    return kind == NodeKind::kBinary || kind == NodeKind::kOr || kind == NodeKind::kAnd;
  }

  Node Make(NodeKind kind) const {
    Node node;
    node.kind = kind;
    node.line = Peek().line;
    return node;
  }
  NodeId AddUnary(NodeKind kind, std::uint32_t line, NodeId a, NodeId b = kNoNode) {
    Node node;
    node.kind = kind;
    node.line = line;
    node.a = a;
    node.b = b;
    return Add(std::move(node));
  }

  // ---- statements ----

  // Up to, not including, a block that begins with one of `ends`, whose name is left to be read.
  // With no `ends`, up to the end of the template.
  NodeId Body(std::initializer_list<std::string_view> ends) {
    const Nest nest(*this);
    Node body = Make(NodeKind::kBody);
    while (!failed_) {
      const Token& token = Peek();
      if (token.kind == TokenKind::kEnd) {
        if (ends.size() > 0) Unexpected("'" + std::string(*(ends.end() - 1)) + "'");
        break;
      }
      if (token.kind == TokenKind::kData) {
        Node data = Make(NodeKind::kData);
        data.text = Next().text;
        body.kids.push_back(Add(std::move(data)));
      } else if (token.kind == TokenKind::kVariableBegin) {
        Next();
        const std::uint32_t line = Peek().line;
        const NodeId value = TupleExpression(true);
        body.kids.push_back(AddUnary(NodeKind::kPrint, line, value));
        Expect(TokenKind::kVariableEnd, "'}}'");
      } else {
        Expect(TokenKind::kBlockBegin, "a block");
        if (Peek().kind == TokenKind::kName &&
            std::find(ends.begin(), ends.end(), Peek().text) != ends.end()) {
          break;
        }
        body.kids.push_back(Statement());
        Expect(TokenKind::kBlockEnd, "'%}'");
      }
    }
    return Add(std::move(body));
  }

  // The body of a statement: its block's end, then everything up to one of `ends`.
  NodeId Block(std::initializer_list<std::string_view> ends) {
    SkipOperator(":");
    Expect(TokenKind::kBlockEnd, "'%}'");
    return Body(ends);
  }
  NodeId BlockUntil(std::string_view end) {
    const NodeId body = Block({end});
    Next();
    return body;
  }
  // The same where names of filters are checked at once: not directly inside an {% if %}.
  NodeId HardBlockUntil(std::string_view end) {
    const int soft = std::exchange(soft_, 0);
    const NodeId body = BlockUntil(end);
    soft_ = soft;
    return body;
  }

  NodeId Statement() {
    if (Peek().kind != TokenKind::kName) {
      Unexpected("the name of a statement");
      return kNoNode;
    }
    const std::string& name = Peek().text;
    if (name == "if") return If();
    if (name == "for") return For();
    if (name == "set") return Set();
    if (name == "macro") return Macro();
    if (name == "call") return CallBlock();
    if (name == "filter") return FilterBlock();
    if (name == "with") return With();
    if (name == "print") return Print();
    if (name == "generation") return Generation();
    if (name == "break" || name == "continue") return Jump();
    static constexpr std::string_view kRefused[] = {"include", "import", "from",
                                                    "extends", "block",  "autoescape"};
    for (const std::string_view refused : kRefused) {
      if (name != refused) continue;
      Fail("'" + name + "' is not part of the sandbox", ErrorCode::kUnsupported);
      return kNoNode;
    }
    Fail("unknown statement '" + name.substr(0, 32) + "'");
    return kNoNode;
  }

  NodeId If() {
    Node node = Make(NodeKind::kIf);
    Next();
    ++soft_;
    while (!failed_) {
      node.kids.push_back(TupleExpression(false));
      node.kids.push_back(Block({"elif", "else", "endif"}));
      const std::string end = Next().text;
      if (end == "elif") continue;
      if (end == "else") node.c = BlockUntil("endif");
      break;
    }
    --soft_;
    return Add(std::move(node));
  }

  NodeId For() {
    Node node = Make(NodeKind::kFor);
    Next();
    node.a = TargetList();
    if (!SkipName("in")) Unexpected("'in'");
    node.b = TupleExpression(false);
    const int soft = std::exchange(soft_, 0);
    if (SkipName("if")) node.c = Expression();
    if (IsName("recursive")) Fail("recursive loops are not supported", ErrorCode::kUnsupported);
    ++loops_;
    node.kids.push_back(Block({"endfor", "else"}));
    --loops_;
    node.kids.push_back(Next().text == "else" ? BlockUntil("endfor") : kNoNode);
    soft_ = soft;
    return Add(std::move(node));
  }

  NodeId Jump() {
    const bool is_break = Peek().text == "break";
    if (loops_ == 0) Fail("'" + Peek().text + "' outside of a loop");
    const Node node = Make(is_break ? NodeKind::kBreak : NodeKind::kContinue);
    Next();
    return Add(node);
  }

  NodeId Set() {
    Node node = Make(NodeKind::kSet);
    Next();
    if (Peek().kind == TokenKind::kName && IsOperator(".", 1)) {
      Node target = Make(NodeKind::kNamespaceTarget);
      target.name = Reference(Next().text);
      Next();
      target.text = ExpectName("an attribute");
      node.a = Add(std::move(target));
    } else {
      node.a = TargetList();
    }
    if (SkipOperator("=")) {
      node.b = TupleExpression(true);
      return Add(std::move(node));
    }
    node.kind = NodeKind::kSetBlock;
    if (IsOperator("|")) node.b = FilterChain(kNoNode);
    node.kids.push_back(HardBlockUntil("endset"));
    return Add(std::move(node));
  }

  NodeId Print() {
    Next();
    const std::uint32_t line = Peek().line;
    return AddUnary(NodeKind::kPrint, line, TupleExpression(true));
  }

  NodeId Generation() {
    Node node = Make(NodeKind::kScope);
    Next();
    const int loops = std::exchange(loops_, 0);
    node.kids.push_back(HardBlockUntil("endgeneration"));
    loops_ = loops;
    return Add(std::move(node));
  }

  NodeId With() {
    Node node = Make(NodeKind::kWith);
    Next();
    while (!failed_ && Peek().kind != TokenKind::kBlockEnd) {
      if (!node.kids.empty()) ExpectOperator(",");
      node.kids.push_back(TargetList());
      ExpectOperator("=");
      node.kids.push_back(Expression());
    }
    node.a = HardBlockUntil("endwith");
    return Add(std::move(node));
  }

  NodeId FilterBlock() {
    Node node = Make(NodeKind::kFilterBlock);
    Next();
    node.a = FilterChain(OneFilter(kNoNode));
    node.kids.push_back(HardBlockUntil("endfilter"));
    return Add(std::move(node));
  }

  NodeId Macro() {
    Node node = Make(NodeKind::kMacro);
    Next();
    node.name = Intern(ExpectName("the name of a macro"));
    Signature(node);
    MacroBody(node, "endmacro");
    return Add(std::move(node));
  }

  NodeId CallBlock() {
    Node node = Make(NodeKind::kCallBlock);
    Next();
    if (IsOperator("(")) Signature(node);
    node.a = Expression();
    if (!failed_ && tree_.nodes[node.a].kind != NodeKind::kCall) Fail("expected a call");
    MacroBody(node, "endcall");
    return Add(std::move(node));
  }

  void MacroBody(Node& node, std::string_view end) {
    const Uses outer = std::exchange(uses_, Uses{});
    const int loops = std::exchange(loops_, 0);
    node.kids.push_back(HardBlockUntil(end));
    loops_ = loops;
    node.uses_caller = uses_.caller;
    node.uses_varargs = uses_.varargs;
    node.uses_kwargs = uses_.kwargs;
    // The macro around this one mentions them too.
    uses_.caller |= outer.caller;
    uses_.varargs |= outer.varargs;
    uses_.kwargs |= outer.kwargs;
  }

  void Signature(Node& node) {
    ExpectOperator("(");
    while (!failed_ && !IsOperator(")")) {
      if (!node.parameters.empty()) ExpectOperator(",");
      Parameter parameter;
      parameter.name = Intern(ExpectName("a parameter"));
      if (SkipOperator("=")) {
        parameter.default_value = Expression();
      } else if (!node.parameters.empty() && node.parameters.back().default_value != kNoNode) {
        Fail("parameter without default after one with default");
      }
      node.parameters.push_back(parameter);
    }
    ExpectOperator(")");
  }

  // a   or   a, b   or   a, (b, c)
  NodeId TargetList() {
    Node tuple = Make(NodeKind::kTuple);
    bool is_tuple = false;
    while (!failed_) {
      if (is_tuple && Peek().kind != TokenKind::kName && !IsOperator("(")) break;
      if (is_tuple && IsName("in")) break;
      tuple.kids.push_back(Target());
      if (!SkipOperator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !tuple.kids.empty()) return tuple.kids[0];
    return Add(std::move(tuple));
  }
  NodeId Target() {
    const Nest nest(*this);
    if (SkipOperator("(")) {
      const NodeId inner = TargetList();
      ExpectOperator(")");
      return inner;
    }
    Node node = Make(NodeKind::kName);
    static constexpr std::string_view kLiterals[] = {"true",  "True", "false",
                                                     "False", "none", "None"};
    if (std::find(std::begin(kLiterals), std::end(kLiterals), Peek().text) != std::end(kLiterals)) {
      Fail("cannot assign to a literal");
    }
    node.name = Intern(ExpectName("a name to assign to"));
    return Add(std::move(node));
  }

  // ---- expressions ----

  bool AtTupleEnd() const {
    const TokenKind kind = Peek().kind;
    return kind == TokenKind::kVariableEnd || kind == TokenKind::kBlockEnd ||
           kind == TokenKind::kEnd || IsOperator(")");
  }

  // An expression, or several with commas between them: a tuple without brackets.
  NodeId TupleExpression(bool with_condition, bool in_brackets = false) {
    const Nest nest(*this);
    Node tuple = Make(NodeKind::kTuple);
    bool is_tuple = false;
    while (!failed_ && !AtTupleEnd()) {
      tuple.kids.push_back(with_condition ? Expression() : Or());
      if (!SkipOperator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple) {
      if (!tuple.kids.empty()) return tuple.kids[0];
      if (!in_brackets) Unexpected("an expression");
    }
    return Add(std::move(tuple));
  }

  NodeId Expression() {
    const Nest nest(*this);
    const std::size_t num_unknown = unknown_.size();
    NodeId value = Or();
    while (!failed_ && IsName("if")) {
      unknown_.resize(num_unknown);  // What was read turns out to be a branch.
      Node node = Make(NodeKind::kCondition);
      Next();
      ++soft_;
      node.a = value;
      node.b = Or();
      if (SkipName("else")) node.c = Expression();
      --soft_;
      value = Add(std::move(node));
    }
    return value;
  }

  NodeId Or() {
    NodeId left = And();
    while (!failed_ && IsName("or")) {
      const std::uint32_t line = Next().line;
      left = AddUnary(NodeKind::kOr, line, left, And());
    }
    return left;
  }
  NodeId And() {
    NodeId left = Not();
    while (!failed_ && IsName("and")) {
      const std::uint32_t line = Next().line;
      left = AddUnary(NodeKind::kAnd, line, left, Not());
    }
    return left;
  }
  NodeId Not() {
    if (!IsName("not")) return Compare();
    const Nest nest(*this);
    const std::uint32_t line = Next().line;
    return AddUnary(NodeKind::kNot, line, Not());
  }

  std::optional<Operator> CompareOperator() {
    static constexpr std::pair<std::string_view, Operator> kTable[] = {
        {"==", Operator::kEq}, {"!=", Operator::kNe}, {"<", Operator::kLt},
        {"<=", Operator::kLe}, {">", Operator::kGt},  {">=", Operator::kGe}};
    for (const auto& [text, op] : kTable) {
      if (SkipOperator(text)) return op;
    }
    if (SkipName("in")) return Operator::kIn;
    if (IsName("not") && IsName("in", 1)) {
      Next();
      Next();
      return Operator::kNotIn;
    }
    return std::nullopt;
  }
  NodeId Compare() {
    Node node = Make(NodeKind::kCompare);
    node.a = Sum();
    while (!failed_) {
      const std::optional<Operator> op = CompareOperator();
      if (!op) break;
      node.operators.push_back(*op);
      node.kids.push_back(Sum());
    }
    return node.kids.empty() ? node.a : Add(std::move(node));
  }

  NodeId AddBinary(Operator op, std::uint32_t line, NodeId left, NodeId right) {
    Node node;
    node.kind = NodeKind::kBinary;
    node.op = op;
    node.line = line;
    node.a = left;
    node.b = right;
    return Add(std::move(node));
  }
  NodeId Sum() {
    NodeId left = Concat();
    while (!failed_ && (IsOperator("+") || IsOperator("-"))) {
      const Token op = Next();
      left = AddBinary(op.text == "+" ? Operator::kAdd : Operator::kSub, op.line, left, Concat());
    }
    return left;
  }
  NodeId Concat() {
    Node node = Make(NodeKind::kConcat);
    node.kids.push_back(Product());
    while (!failed_ && SkipOperator("~"))
      node.kids.push_back(Product());
    return node.kids.size() == 1 ? node.kids[0] : Add(std::move(node));
  }
  NodeId Product() {
    static constexpr std::pair<std::string_view, Operator> kTable[] = {{"*", Operator::kMul},
                                                                       {"/", Operator::kDiv},
                                                                       {"//", Operator::kFloorDiv},
                                                                       {"%", Operator::kMod}};
    NodeId left = Power();
    while (!failed_) {
      const auto* found = std::find_if(std::begin(kTable), std::end(kTable),
                                       [&](const auto& row) { return IsOperator(row.first); });
      if (found == std::end(kTable)) break;
      const std::uint32_t line = Next().line;
      left = AddBinary(found->second, line, left, Power());
    }
    return left;
  }
  NodeId Power() {
    NodeId left = Unary(true);
    while (!failed_ && IsOperator("**")) {
      const std::uint32_t line = Next().line;
      left = AddBinary(Operator::kPow, line, left, Unary(true));
    }
    return left;
  }
  NodeId Unary(bool with_filters) {
    const Nest nest(*this);
    NodeId node = kNoNode;
    const std::uint32_t line = Peek().line;
    if (SkipOperator("-")) {
      node = AddUnary(NodeKind::kNegate, line, Unary(false));
    } else if (SkipOperator("+")) {
      node = AddUnary(NodeKind::kPositive, line, Unary(false));
    } else {
      node = Primary();
    }
    node = Postfix(node);
    return with_filters ? FiltersAndTests(node) : node;
  }

  NameId Reference(const std::string& name) {
    if (name == "caller") uses_.caller = true;
    if (name == "varargs") uses_.varargs = true;
    if (name == "kwargs") uses_.kwargs = true;
    return Intern(name);
  }

  NodeId Primary() {
    Node node = Make(NodeKind::kConstNone);
    const Token& token = Peek();
    switch (token.kind) {
      case TokenKind::kName: {
        const std::string name = Next().text;
        if (name == "true" || name == "True" || name == "false" || name == "False") {
          node.kind = NodeKind::kConstBool;
          node.integer = (name == "true" || name == "True") ? 1 : 0;
        } else if (name != "none" && name != "None") {
          node.kind = NodeKind::kName;
          node.name = Reference(name);
        }
        return Add(std::move(node));
      }
      case TokenKind::kString:
        node.kind = NodeKind::kConstString;
        while (Peek().kind == TokenKind::kString)
          node.text += Next().text;
        return Add(std::move(node));
      case TokenKind::kInteger:
        node.kind = NodeKind::kConstInt;
        node.integer = Next().integer;
        return Add(std::move(node));
      case TokenKind::kFloat:
        node.kind = NodeKind::kConstFloat;
        node.real = Next().real;
        return Add(std::move(node));
      default:
        break;
    }
    if (SkipOperator("(")) {
      const NodeId inner = TupleExpression(true, true);
      ExpectOperator(")");
      return inner;
    }
    if (SkipOperator("[")) return ListLiteral(std::move(node));
    if (SkipOperator("{")) return DictLiteral(std::move(node));
    Unexpected("an expression");
    return Add(std::move(node));
  }
  NodeId ListLiteral(Node node) {
    node.kind = NodeKind::kList;
    while (!failed_ && !IsOperator("]")) {
      if (!node.kids.empty()) ExpectOperator(",");
      if (IsOperator("]")) break;
      node.kids.push_back(Expression());
    }
    ExpectOperator("]");
    return Add(std::move(node));
  }
  NodeId DictLiteral(Node node) {
    node.kind = NodeKind::kDict;
    while (!failed_ && !IsOperator("}")) {
      if (!node.kids.empty()) ExpectOperator(",");
      if (IsOperator("}")) break;
      node.kids.push_back(Expression());
      ExpectOperator(":");
      node.kids.push_back(Expression());
    }
    ExpectOperator("}");
    return Add(std::move(node));
  }

  NodeId Postfix(NodeId value) {
    while (!failed_) {
      if (IsOperator(".")) {
        value = Dot(value);
      } else if (IsOperator("[")) {
        value = Subscript(value);
      } else if (IsOperator("(")) {
        value = Call(value);
      } else {
        break;
      }
    }
    return value;
  }
  NodeId Dot(NodeId value) {
    Node node = Make(NodeKind::kAttribute);
    Next();
    node.a = value;
    if (Peek().kind == TokenKind::kInteger) {
      Node index = Make(NodeKind::kConstInt);
      index.integer = Next().integer;
      node.kind = NodeKind::kItem;
      node.b = Add(std::move(index));
    } else {
      node.text = ExpectName("an attribute");
    }
    return Add(std::move(node));
  }
  NodeId Subscript(NodeId value) {
    const Nest nest(*this);
    Node node = Make(NodeKind::kItem);
    Next();
    node.a = value;
    node.b = SliceOrExpression();
    if (IsOperator(",")) Fail("a subscript with commas is not supported", ErrorCode::kUnsupported);
    ExpectOperator("]");
    return Add(std::move(node));
  }
  NodeId SliceOrExpression() {
    const std::uint32_t line = Peek().line;
    const NodeId first = IsOperator(":") ? kNoNode : Expression();
    if (!IsOperator(":")) return first;
    Node node;
    node.kind = NodeKind::kSlice;
    node.line = line;
    node.a = first;
    Next();
    if (!IsOperator(":") && !IsOperator("]")) node.b = Expression();
    if (SkipOperator(":") && !IsOperator("]")) node.c = Expression();
    return Add(std::move(node));
  }
  NodeId Call(NodeId callee) {
    Node node = Make(NodeKind::kCall);
    node.a = callee;
    Arguments(node);
    return Add(std::move(node));
  }

  void Arguments(Node& node) {
    const Nest nest(*this);
    ExpectOperator("(");
    Argument::Kind last = Argument::Kind::kPositional;
    while (!failed_ && !IsOperator(")")) {
      if (!node.arguments.empty()) {
        ExpectOperator(",");
        if (IsOperator(")")) break;
      }
      Argument argument;
      if (SkipOperator("*")) {
        argument.kind = Argument::Kind::kStar;
      } else if (SkipOperator("**")) {
        argument.kind = Argument::Kind::kStarStar;
      } else if (Peek().kind == TokenKind::kName && IsOperator("=", 1)) {
        argument.kind = Argument::Kind::kKeyword;
        argument.keyword = Next().text;
        Next();
      }
      const bool in_order =
          argument.kind == Argument::Kind::kPositional ? last == Argument::Kind::kPositional
          : argument.kind == Argument::Kind::kStar     ? last <= Argument::Kind::kKeyword
                                                       : last != Argument::Kind::kStarStar;
      if (!in_order) Fail("arguments out of order");
      argument.value = Expression();
      last = argument.kind;
      node.arguments.push_back(std::move(argument));
    }
    ExpectOperator(")");
  }

  NodeId FiltersAndTests(NodeId value) {
    while (!failed_) {
      if (SkipOperator("|")) {
        value = OneFilter(value);
      } else if (IsName("is")) {
        value = Test(value);
      } else if (IsOperator("(")) {
        value = Call(value);
      } else {
        break;
      }
    }
    return value;
  }
  // An unknown name in a branch is an error only when the branch is taken: templates probe for what
  // an engine offers.
  void Unknown(const char* what, const Node& node) {
    if (soft_ > 0 || failed_) return;
    unknown_.push_back("line " + std::to_string(node.line) + ": no " + what + " named '" +
                       node.text.substr(0, 32) + "'");
  }
  NodeId FilterChain(NodeId value) {
    while (!failed_ && SkipOperator("|"))
      value = OneFilter(value);
    return value;
  }
  NodeId OneFilter(NodeId value) {
    Node node = Make(NodeKind::kFilter);
    node.a = value;
    node.text = ExpectName("the name of a filter");
    if (!IsKnownFilter(node.text)) Unknown("filter", node);
    if (IsOperator("(")) Arguments(node);
    return Add(std::move(node));
  }
  bool AtTestArgument() const {
    switch (Peek().kind) {
      case TokenKind::kString:
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return true;
      case TokenKind::kName:
        return !IsName("else") && !IsName("or") && !IsName("and");
      default:
        return IsOperator("[") || IsOperator("{");
    }
  }
  NodeId Test(NodeId value) {
    const std::uint32_t line = Next().line;
    const bool negated = SkipName("not");
    Node node = Make(NodeKind::kTest);
    node.a = value;
    node.text = ExpectName("the name of a test");
    if (!IsKnownTest(node.text)) Unknown("test", node);
    if (IsOperator("(")) {
      Arguments(node);
    } else if (AtTestArgument()) {
      if (IsName("is")) Fail("tests cannot be chained");
      Argument argument;
      argument.value = Postfix(Primary());
      node.arguments.push_back(std::move(argument));
    }
    const NodeId test = Add(std::move(node));
    return negated ? AddUnary(NodeKind::kNot, line, test) : test;
  }

  const std::vector<Token> tokens_;
  std::size_t pos_ = 0;
  Tree tree_;
  std::map<std::string, NameId> ids_;
  std::uint32_t nesting_ = 0;
  int loops_ = 0;
  int soft_ = 0;  // Enclosing conditions in this frame.
  std::vector<std::string> unknown_;
  Uses uses_;
  bool failed_ = false;
  std::string error_;
  ErrorCode error_code_ = ErrorCode::kInvalidArgument;
  std::uint32_t error_line_ = 1;
};

}  // namespace

Result<Tree> ParseTemplate(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return Error{ErrorCode::kTooLarge, "chat template has " + std::to_string(source.size()) +
                                           " bytes; the limit is " +
                                           std::to_string(kMaxSourceBytes)};
  }
  if (!IsValidUtf8(source)) {
    return Error{ErrorCode::kInvalidArgument, "line 1: chat template is not valid UTF-8"};
  }
  Result<std::vector<Token>> tokens = Tokenize(source);
  if (!tokens) return tokens.error();
  return Parser(std::move(tokens).value()).Run();
}

}  // namespace kvrm::jinja
