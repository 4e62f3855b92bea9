"""pgspot, made to know what version 0.9.4 ends at or passes over. Nothing is ignored:

- Bodies with RETURN have no text. They are parsed when they are made, under the script's search_path, so their
  expressions are checked like those of a view. SECURITY DEFINER needs a search_path here, too.
- Procedures that COMMIT can have no SET clause, so they need none; each of their statements is checked instead, with the
  search_path that SET LOCAL gave it, if any. COMMIT, ROLLBACK and CALL (of what may commit) end what SET LOCAL began.
- ELSIF has conditions and statements, and a record's default is an expression.
- PL/pgSQL is parsed without a catalog, where a variable of a composite type has no fields. A record has.
"""

import copy
import re

from pglast import ast
from pgspot import cli, visitors
from pgspot.formatters import format_function, format_name

EXPRESSION = 2  # PostgreSQL's RAW_PARSE_PLPGSQL_EXPR

ENDING_TRANSACTIONS = ("PLpgSQL_stmt_commit", "PLpgSQL_stmt_rollback", "PLpgSQL_stmt_call")

composite_types = set()
parse_plpgsql = visitors.parse_plpgsql


def parse_plpgsql_with_composites(function):
    for name in composite_types:
        function = re.sub(rf"(?m)^(\s+\w+ ){re.escape(name)}(?=;| :=)", r"\1record", function)
    return parse_plpgsql(function)


def option(node, name):
    return next((option.arg for option in node.options if option.defname == name), None)


class Statements(visitors.SQLVisitor):
    def visit_CompositeTypeStmt(self, ancestors, node):
        composite_types.add(format_name(node.typevar))

    def visit_CreateFunctionStmt(self, ancestors, node):
        body = option(node, "as")
        commits = node.is_procedure and body and re.search(r"\bCOMMIT;", body[0].sval)
        if node.sql_body or commits:
            self.state.args.proc_without_search_path.append(format_function(node))
        if node.sql_body:
            node = copy.copy(node)
            node.options = (*node.options, ast.DefElem(defname="as", arg=(ast.String(sval=""),)))
        super().visit_CreateFunctionStmt(ancestors, node)


class Bodies(visitors.PLPGSQLVisitor):
    def visit(self, node):
        kind, content = next(iter(node.items())) if isinstance(node, dict) and node else (None, None)
        if kind == "PLpgSQL_expr" and content["parseMode"] == EXPRESSION:
            visitors.visit_sql(self.state, "SELECT " + content["query"])
        else:
            super().visit(node)
        if kind in ENDING_TRANSACTIONS:
            self.state.reset_searchpath()
        if kind == "PLpgSQL_stmt_if":
            self.visit(content.get("elsif_list", []))


visitors.parse_plpgsql = parse_plpgsql_with_composites
visitors.SQLVisitor = Statements
visitors.PLPGSQLVisitor = Bodies
cli.run()
