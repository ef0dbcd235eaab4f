"""An exception's way from the handler that raised it to the caller.

The server makes a message of the exception (`error_message`), and the caller makes an exception of
the message (`exception_from`, or `clean_exception` for its parts).  The exception and its traceback
travel as pickles, with the texts of both for receivers that do not unpickle.

The caller gets the type, message, attributes, causes, contexts, notes and traceback.  The form of
the traceback depends on what is installed:

* With tblib on both sides it is a traceback object with all its frames.
* Otherwise it is text in a note (PEP 678), which Python prints with the exception.  A sender
  without tblib adds such a note to each exception of the chain, so every receiver shows it.  A
  receiver without tblib adds one from the message's ``traceback_text``.  Each hop adds its own
  note, so an error that passed several servers shows all of them.

Tracebacks consist of the user's frames: those of the event loop, of this core and of roles that
stand on it are left out, except after the user's last frame.

Making the message never fails, because something has failed already when it is made: ``str`` and
``repr`` of the exception may raise, its message may fill the memory, and its traceback may have ten
thousand frames.  Therefore each text is limited to ``distributed.admin.max-error-length``
characters, and the pickle of each traceback to as many bytes.  The sender unpickles each pickle to
test it.  An exception that fails this test travels as an `Exception` that carries its ``repr``.

=============  =====================================================================
`.messages`    exceptions to messages and back: the functions that other code calls
`.pickles`     exceptions and tracebacks to pickles that can be unpickled
`.frames`      tracebacks without the frames of this core
`.text`        texts of limited length, made without raising
=============  =====================================================================
"""
