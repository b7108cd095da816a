// Requests to the service, with the user's key where it wants one.

const KEY = "semshare.key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const useKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

// The decoded body. Throws `Refused` with the service's own message; status 0: not reached.
export async function call(method, path, body) {
  const headers = { Accept: "application/json" };
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refused(0, "The service can't be reached; trying again.");
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok) {
    const message = answer?.error?.message ?? `${method} ${path}: status ${response.status}`;
    throw new Refused(response.status, message);
  }
  return answer;
}

export const get = (path) => call("GET", path);
