# SPDX-License-Identifier: Apache-2.0
"""A notebook over HTTP: notes are kept in SQLite, in order."""
import hashlib
import os
import platform
import sqlite3

from flask import Flask, abort, jsonify, request

DATABASE = os.environ.get("DATABASE", "notes.db")
MAX_NOTE = 1 << 20

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = MAX_NOTE


def database():
    """Opens the database; every worker process makes the table if it is missing."""
    db = sqlite3.connect(DATABASE, timeout=30)
    db.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    return db


@app.get("/")
def index():
    return jsonify(service="notes", python=platform.python_version(),
                   uid=os.getuid(), gid=os.getgid(), pid=os.getpid())


@app.post("/notes")
def add():
    body = request.get_data()
    with database() as db:
        row = db.execute("INSERT INTO note (body) VALUES (?)", (body,)).lastrowid
    return jsonify(id=row, sha256=hashlib.sha256(body).hexdigest()), 201


@app.get("/notes")
def count():
    with database() as db:
        return jsonify(count=db.execute("SELECT count(*) FROM note").fetchone()[0])


@app.get("/notes/<int:note>")
def get(note):
    with database() as db:
        row = db.execute("SELECT body FROM note WHERE id = ?", (note,)).fetchone()
    if row is None:
        abort(404)
    return row[0], 200, {"Content-Type": "application/octet-stream"}
